// SPDX-License-Identifier: Apache-2.0
#include "training/trace.h"

#include <fmt/format.h>

#include <memory>
#include <string_view>

#include "app/add_verb.h"
#include "app/verbs.h"
#include "io/npz.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

struct Options {
  std::string model;
  std::string inputs;
  std::vector<std::string> gradient;  // empty with the flag given: the loss without a name
  bool wants_gradient = false;
  std::vector<std::string> settings;
};

void trace(Session& session, const Options& options) {
  TraceOptions settings;
  settings.product = session.product_type();
  for (const std::string& setting : options.settings) {
    constexpr std::string_view kBranch = "branch=";
    if (setting.starts_with(kBranch)) {
      settings.branch = setting.substr(kBranch.size());
      continue;
    }
    if (setting == "genes=all" || setting == "genes=expressed") {
      settings.all_genes = setting == "genes=all";
      continue;
    }
    if (setting != "compat=upstream" && setting != "compat=scgraft")
      throw ConfigError(cat("--set takes compat=upstream, compat=scgraft, genes=expressed, ",
                            "genes=all or branch=NAME, got \"", setting, "\""));
    settings.upstream = setting == "compat=upstream";
  }
  if (options.wants_gradient)
    settings.gradient = options.gradient.empty() ? std::string() : options.gradient.front();
  std::map<std::string, Tensor> inputs;
  {
    const auto timer = session.time("io");
    inputs = read_npz(options.inputs);
  }
  std::map<std::string, Tensor> arrays;
  {
    const auto timer = session.time("compute");
    arrays = trace_checkpoint(session.context(), options.model, inputs, settings);
  }
  std::map<std::string, ConstTensorView> views;
  for (const auto& [name, array] : arrays) views.emplace(name, array.view());
  const std::string& output = session.flags().output;
  write_npz(output, views, session.overwrite());
  session.add_output(output);
  std::vector<std::string> names;
  for (const auto& [name, array] : arrays) names.push_back(name);
  session.result() = {{"arrays", names}};
  session.print(fmt::format("{}: {} arrays\n", output, names.size()));
}

}  // namespace

void add_trace(CLI::App& root, Session& session) {
  auto options = std::make_shared<Options>();
  CLI::App& verb =
      add_verb(root, session,
               {"trace",
                "Write every activation of a checkpoint on given tokens",
                {"scgraft trace --model models/scgpt --inputs tokens.npz -o out.npz",
                 "scgraft trace --model models/scgpt --inputs tokens.npz -o grads.npz --grad cls"}},
               [&session, options] { trace(session, *options); });
  verb.add_option("--model", options->model, "Checkpoint folder")->required()->type_name("DIR");
  verb.add_option(
          "--inputs", options->inputs,
          "Tokens under the names of the recordings (scGPT: src, values, src_key_padding_mask)")
      ->required()
      ->type_name("FILE.npz");
  CLI::Option* gradient =
      verb.add_option(
              "--grad", options->gradient,
              "Also gradients: of the adapter's loss, or of the one named (cls, multi, total)")
          ->expected(0, 1)
          ->type_name("[NAME]");
  verb.add_option(
          "-s,--set", options->settings,
          "compat=upstream: compute as the published code where scgraft does not; "
          "branch=NAME: which network of a scFoundation checkpoint (cell, rde, gene); "
          "genes=all: a perturbation network reads all genes of gene_values, not only those "
          "that one of the cells expresses")
      ->type_name("KEY=VALUE");
  add_common_flags(verb, session.flags(),
                   {.output_required = true, .compute = true, .precision = true});
  verb.parse_complete_callback([options, gradient] {
    options->wants_gradient = gradient->count() > 0;
    // CLI11 gives a flag without a value an empty text.
    if (options->gradient == std::vector<std::string>{""}) options->gradient.clear();
  });
}

}  // namespace scgraft
