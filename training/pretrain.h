// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string>

#include "runtime/context.h"
#include "training/run_config.h"
#include "training/run_events.h"

namespace scgraft {

struct PretrainOptions {
  std::string preset = "small";  // ScgptConfig::preset
  std::string start = {};        // an scGPT folder to go on from; empty: fresh weights
};

struct PretrainResult {
  int64_t cells = 0;
  int64_t genes = 0;  // of the vocabulary
  int64_t parameters = 0;
  TrainerResult training;
  double first_loss = 0;       // of the first step
  double last_loss = 0;        // mean of the last tenth of the steps
  double validation_loss = 0;  // masked-value loss of the held-out cells; NaN without
};

// Trains an scGPT backbone from unlabelled cells by masked-value modelling, and writes an scGPT
// folder (args.json, vocab.json, model.safetensors) into config.output_dir, which must exist.
//
// The vocabulary is the genes of the file. In every epoch config.train.mask_ratio of each cell's
// values are hidden and predicted from the other genes and from the cell embedding
// (training/masked_expression.h).
//
// Throws as fine_tune() does.
PretrainResult pretrain(Context& ctx, const RunConfig& config, const PretrainOptions& options,
                        const RunEvents& events);

}  // namespace scgraft
