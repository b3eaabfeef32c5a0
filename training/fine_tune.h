// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "runtime/context.h"
#include "training/run_config.h"
#include "training/run_events.h"

namespace scgraft {

// What a fine-tuning run leaves behind, beside its files.
struct FineTuneResult {
  std::string adapter;  // folder
  std::vector<std::string> labels;
  int64_t train_cells = 0;
  int64_t validation_cells = 0;
  int64_t test_cells = 0;
  int64_t trained_parameters = 0;
  int64_t total_parameters = 0;  // of backbone, adapter and head
  TrainerResult training;
  // By method, on the test part when there is one, else on the validation part: "model",
  // "zero_shot_knn", "logistic_regression", "knn".
  std::map<std::string, ClassificationMetrics> scores;
  std::string scored_part;  // "test" or "validation"
  nlohmann::json metrics;   // as stored in metrics.json
};

// Fine-tunes a frozen backbone (model/cell_model.h) to annotate cells, and writes
// <output_dir>/adapter.
//
//   cells   those with a label, split by label (and never inside a group of data.split_by)
//   trained train.trainable: "adapter" = adapter and classification head, "head" = the head alone,
//           "all" = backbone and head (full fine-tuning, no adapter)
//   kept    the parameters of the lowest validation loss
//
// Cheap baselines (multinomial logistic regression and kNN on log-normalised expression, kNN on the
// frozen model's embeddings) are fitted on the same training cells and scored on the same cells.
// command_line goes into the adapter's provenance.
//
// Throws ConfigError (before any work), DataError, ModelError, StorageError, NumericalError.
// Nothing is written to the adapter's folder unless all of it is.
FineTuneResult fine_tune(Context& ctx, const RunConfig& config, const std::string& command_line,
                         bool overwrite, const RunEvents& events);

}  // namespace scgraft
