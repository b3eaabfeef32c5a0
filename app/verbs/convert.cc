// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <filesystem>
#include <memory>

#include "app/add_verb.h"
#include "app/verbs.h"
#include "io/checkpoint.h"
#include "io/output_folder.h"
#include "io/text.h"
#include "model/model_folder.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

namespace fs = std::filesystem;

struct Options {
  std::string input;
  std::string section;
};

void convert_file(Session& session, const Options& options) {
  const std::string& output = session.flags().output;
  const Checkpoint file = open_checkpoint(options.input, options.section);
  std::vector<NamedTensor> tensors;
  for (const TensorInfo& info : file.tensors())
    tensors.push_back({info.name, file.tensor(info.name).view()});
  write_safetensors(output, tensors, {}, session.overwrite());
  session.result() = {{"tensors", static_cast<int64_t>(tensors.size())},
                      {"fingerprint", file.fingerprint()}};
  session.print(fmt::format("{}: {} tensors\n", output, tensors.size()));
}

void convert_folder(Session& session, const Options& options) {
  const std::string& output = session.flags().output;
  const std::unique_ptr<ModelFolder> model = open_model_folder(options.input);
  OutputFolder folder(output, session.overwrite());
  model->save(folder / "", {});
  folder.commit();
  const std::string fingerprint = open_checkpoint(output).fingerprint();
  ParameterSet& parameters = model->backbone().parameters();
  session.result() = {{"tensors", static_cast<int64_t>(parameters.all().size())},
                      {"parameters", parameters.numel()},
                      {"ignored", model->ignored()},
                      {"source_fingerprint", model->fingerprint()},
                      {"fingerprint", fingerprint}};
  session.print(fmt::format("{}: {} parameters, fingerprint {}\n", output, parameters.numel(),
                            fingerprint.substr(0, 12)));
}

void convert(Session& session, const Options& options) {
  require<DataError>(fs::exists(options.input), escaped(options.input),
                     ": there is no such file or folder");
  const auto timer = session.time("io");
  if (fs::is_directory(options.input))
    convert_folder(session, options);
  else
    convert_file(session, options);
  session.add_output(session.flags().output);
}

}  // namespace

void add_convert(CLI::App& root, Session& session) {
  auto options = std::make_shared<Options>();
  CLI::App& verb = add_verb(root, session,
                            {"convert",
                             "Turn a checkpoint of PyTorch into safetensors",
                             {"scgraft convert best_model.pt -o model.safetensors",
                              "scgraft convert models/scgpt-human -o models/scgpt-human-st"}},
                            [&session, options] { convert(session, *options); });
  verb.add_option(
          "IN", options->input,
          "File of weights, or the whole folder of a model; of scFoundation its branch cell")
      ->required();
  verb.add_option("--section", options->section,
                  "Where in the file the weights are, e.g. model_state_dict")
      ->type_name("PATH");
  add_common_flags(verb, session.flags(), {.output_required = true});
}

}  // namespace scgraft
