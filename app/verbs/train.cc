// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>

#include <memory>

#include "app/add_verb.h"
#include "app/config/flags.h"
#include "app/run_folder.h"
#include "app/run_reporter.h"
#include "app/table.h"
#include "app/verbs.h"
#include "training/fine_tune.h"

namespace scgraft {
namespace {

// The methods in the order a reader compares them: what was there before, then what was trained.
struct Method {
  const char* name;
  const char* title;
};
constexpr Method kMethods[] = {{"zero_shot_knn", "frozen model, nearest neighbours"},
                               {"knn", "expression, nearest neighbours"},
                               {"logistic_regression", "expression, logistic regression"},
                               {"model", "this run"}};

std::string score_table(const FineTuneResult& result) {
  Table table({"on the " + result.scored_part + " cells", "accuracy", "balanced", "macro-F1"});
  for (const Method& method : kMethods) {
    const auto it = result.scores.find(method.name);
    if (it == result.scores.end()) continue;
    const ClassificationMetrics& m = it->second;
    table.add({method.title, fmt::format("{:.3f}", m.accuracy),
               fmt::format("{:.3f}", m.balanced_accuracy), fmt::format("{:.3f}", m.macro_f1)});
  }
  return table.text();
}

void run(Session& session, const ConfigFlags& flags) {
  Origins origins;
  RunConfig config = flags.load(session.flags(), &origins);
  require_set(config.base_model, "--model", "the folder of the frozen model");
  require_set(config.data.train, "--data", "the cells to learn from (.h5ad)");
  require_set(config.data.label_key, "--label-key", "the obs column with the labels");
  require_set(config.output_dir, "-o", "the folder for the run");
  if (config.adapter.type == "none" && config.train.trainable == "adapter")
    throw ConfigError("adapter.type is none, so there is no adapter to train");
  session.use_linear_backend(config.train.linear_backend);
  session.context();  // refused before anything is written
  const RunFolder folder(session, config, origins, {"adapter"});
  RunReporter reporter(session, folder.path());
  const FineTuneResult result = fine_tune(session.context(), config, session.command_line(),
                                          session.flags().force, reporter.events());
  reporter.finish();
  folder.finish();
  session.result() = result.metrics;
  session.result()["adapter"] = result.adapter;
  session.result()["labels"] = result.labels;
  session.print(fmt::format(
      "{}: {} cells trained on, {} validated on{}\n"
      "trained {} of {} parameters ({:.2f} %) in {} steps, {:.1f} s\n\n{}\n"
      "next: scgraft annotate CELLS.h5ad --adapter {} -o OUT.h5ad\n",
      result.adapter, result.train_cells, result.validation_cells,
      result.test_cells > 0 ? fmt::format(", {} kept for the test", result.test_cells) : "",
      result.trained_parameters, result.total_parameters,
      100.0 * static_cast<double>(result.trained_parameters) /
          static_cast<double>(result.total_parameters),
      result.training.steps, result.training.seconds, score_table(result), result.adapter));
  session.add_output(result.adapter);
  set_exit_code_of(session, result.training);
}

}  // namespace

void add_train(CLI::App& root, Session& session) {
  auto flags = std::make_shared<ConfigFlags>();
  CLI::App& verb = add_verb(
      root, session,
      {"train",
       "Fine-tune an adapter that annotates cells",
       {"scgraft train --model scgpt-human --data ref.h5ad --label-key cell_type -o runs/pbmc",
        "scgraft train -c run.yaml -s train.epochs=5 -s adapter.r=16"}},
      [&session, flags] { run(session, *flags); });
  verb.alias("finetune");
  flags->add(verb, {{"--model", "base_model"},
                    {"--data", "data.train"},
                    {"--val", "data.val"},
                    {"--label-key", "data.label_key"},
                    {"--split-by", "data.split_by"},
                    {"--subset", "data.subset"},
                    {"--gene-key", "data.gene_key"},
                    {"--layer", "data.layer"},
                    {"--dictionaries", "data.dictionaries"},
                    {"--adapter", "adapter.type"},
                    {"--trainable", "train.trainable"},
                    {"--epochs", "train.epochs"},
                    {"--learning-rate", "train.learning_rate"}});
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
