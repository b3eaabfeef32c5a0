// SPDX-License-Identifier: Apache-2.0
#include "training/pretrain.h"

#include <fmt/core.h>

#include <filesystem>
#include <memory>

#include "app/add_verb.h"
#include "app/config/flags.h"
#include "app/run_folder.h"
#include "app/run_reporter.h"
#include "app/verbs.h"
#include "runtime/cpu.h"

namespace scgraft {
namespace {

struct Options {
  ConfigFlags flags;
  PretrainOptions pretrain;
};

void run(Session& session, const Options& options) {
  Origins origins;
  RunConfig config = options.flags.load(session.flags(), &origins);
  config.task = "pretrain";
  require_set(config.data.train, "--data", "the cells to learn from (.h5ad)");
  require_set(config.output_dir, "-o", "the folder for the model");
  session.use_linear_backend(config.train.linear_backend);
  session.context();  // refused before anything is written
  const RunFolder folder(session, config, origins, {"model.safetensors", "args.json"});
  RunReporter reporter(session, folder.path());
  const PretrainResult result =
      pretrain(session.context(), config, options.pretrain, reporter.events());
  reporter.finish();
  folder.finish();
  const TrainerResult& t = result.training;
  session.result() = {{"model", config.output_dir},
                      {"cells", result.cells},
                      {"vocabulary", result.genes},
                      {"parameters", result.parameters},
                      {"steps", t.steps},
                      {"seconds", t.seconds},
                      {"seconds_per_step", t.seconds_per_step},
                      {"first_loss", result.first_loss},
                      {"last_loss", result.last_loss},
                      {"validation_loss", result.validation_loss},
                      {"peak_rss_bytes", peak_resident_bytes()}};
  session.print(fmt::format(
      "{}: {} parameters, {} tokens, {} cells, {} steps in {:.1f} s\n"
      "masked-value loss {:.2f} -> {:.2f}, held-out cells {:.2f}\n"
      "next: scgraft train --model {} --data CELLS.h5ad --label-key COLUMN -o RUN\n",
      config.output_dir, result.parameters, result.genes, result.cells, t.steps, t.seconds,
      result.first_loss, result.last_loss, result.validation_loss, config.output_dir));
  for (const char* name : {"model.safetensors", "args.json", "vocab.json"})
    session.add_output((std::filesystem::path(config.output_dir) / name).string());
  set_exit_code_of(session, t);
}

}  // namespace

void add_pretrain(CLI::App& root, Session& session) {
  auto options = std::make_shared<Options>();
  CLI::App& verb = add_verb(root, session,
                            {"pretrain",
                             "Train a small backbone on unlabelled cells",
                             {"scgraft pretrain --data atlas.h5ad --preset small -o model",
                              "scgraft pretrain --data atlas.h5ad --from model -o model2 "
                              "--max-time 10m"}},
                            [&session, options] { run(session, *options); });
  verb.add_option("--preset", options->pretrain.preset,
                  "Size of a fresh network: tiny, small, base or whole-human")
      ->capture_default_str();
  verb.add_option("--from", options->pretrain.start,
                  "Go on from this scGPT folder, instead of a fresh network");
  options->flags.add(verb, {{"--data", "data.train"},
                            {"--gene-key", "data.gene_key"},
                            {"--layer", "data.layer"},
                            {"--subset", "data.subset"},
                            {"--max-genes", "data.max_genes"},
                            {"--epochs", "train.epochs"},
                            {"--learning-rate", "train.learning_rate"},
                            {"--mask-ratio", "train.mask_ratio"}});
  add_common_flags(verb, session.flags(),
                   {.output = true,
                    .config = true,
                    .compute = true,
                    .precision = true,
                    .batch = true,
                    .seed = true,
                    .max_time = true});
}

}  // namespace scgraft
