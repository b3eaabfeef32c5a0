// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <memory>

#include "adapters/peft_export.h"
#include "app/add_verb.h"
#include "app/verbs/adapter_verbs.h"
#include "io/text.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

struct Options {
  MergeOptions merge;
  std::string format = "peft";
  bool merged = false;
};

void export_adapter(Session& session, const Options& options) {
  if (options.merged) return merge_adapter(session, options.merge);
  if (options.format != "peft") {
    ConfigError error(
        cat("adapters are exported in the format peft, not \"", escaped(options.format, 40), "\""),
        "E-USAGE");
    error.set_hint("--format peft, or --merged for a whole model");
    throw error;
  }
  const auto timer = session.time("io");
  const std::string& output = session.flags().output;
  export_peft(load_adapter(options.merge.adapter), output, session.overwrite());
  session.add_output(output);
  const LoadedBundle written = load_adapter(output);
  std::vector<std::string> keys;
  for (const TensorInfo& info : written.tensors.tensors()) keys.push_back(info.name);
  session.result() = {{"format", "peft"},
                      {"type", written.config.kind},
                      {"target_modules", written.config.target_modules},
                      {"modules_to_save", written.config.modules_to_save},
                      {"tensors", keys}};
  session.print(fmt::format("{}: {} of {} tensors, for PeftModel.from_pretrained\n", output,
                            written.config.kind, keys.size()));
}

}  // namespace

void add_adapter_export(CLI::App& parent, Session& session) {
  auto options = std::make_shared<Options>();
  CLI::App& verb = add_verb(parent, session,
                            {"export",
                             "Write an adapter as Python's PEFT opens it",
                             {"scgraft adapter export runs/pbmc/adapter -o pbmc-peft",
                              "scgraft adapter export runs/pbmc/adapter --merged -o models/pbmc"}},
                            [&session, options] { export_adapter(session, *options); });
  verb.add_option("DIR", options->merge.adapter, "Adapter directory")->required();
  verb.add_option("--format", options->format,
                  "peft: LoRA, HRA, OFT and prefix-tuning, with trained heads")
      ->type_name("NAME")
      ->capture_default_str();
  verb.add_flag("--merged", options->merged, "The base model with the adapter inside its weights");
  add_merge_flags(verb, options->merge);
  add_common_flags(verb, session.flags(), {.output_required = true});
}

}  // namespace scgraft
