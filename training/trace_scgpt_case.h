// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <vector>

#include "model/batch.h"
#include "training/trace_arrays.h"

namespace scgraft {

// The inputs of a trace of scGPT, checked and packed.
struct ScgptCase {
  TokenGrid grid;
  std::vector<std::vector<int32_t>> genes = {};
  std::vector<std::vector<float>> values = {}, targets = {};
  std::vector<std::vector<uint8_t>> masked = {};
  std::vector<int32_t> labels = {};   // of each cell, -1: none
  std::vector<int32_t> batches = {};  // label of each cell's batch, or none at all
  std::vector<int32_t> flags = {};    // of each token, or none at all
  std::vector<float> class_weight = {};
  std::vector<uint8_t> visible = {};  // one mark per token, or none

  bool has_labels() const { return !labels.empty() && labels.front() >= 0; }
  // Views into this.
  std::vector<CellView> cells() const;
};

// What of the inputs a model reads, and how.
struct ScgptCaseOptions {
  double mask_value = -1;
  bool keep_padding = false;  // padding is part of the cells, and no token sees it
  bool flags = false;         // the model reads perturbation flags; all tokens are to be predicted
  bool batches = false;       // the model reads batch labels
};

// Throws DataError (E-TRACE-INPUT) naming what is missing.
ScgptCase read_scgpt_case(const TraceArrays& inputs, const ScgptCaseOptions& options);

}  // namespace scgraft
