// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <vector>

#include "model/batch.h"

namespace scgraft {

// Consecutive cells as tokens, packed: what a backbone's tokeniser makes of a chunk of rows.
struct TokenisedCells {
  int64_t first_cell = 0;              // number of the first cell in its data set
  std::vector<int64_t> offsets = {0};  // [cells + 1]
  std::vector<int32_t> genes;          // [offsets.back()] token ids
  std::vector<float> values;           // [offsets.back()] what goes with a token: a bin, a rank
  std::vector<int64_t> empty;          // cells without any gene the model knows, ascending

  int64_t cells() const { return static_cast<int64_t>(offsets.size()) - 1; }
  // Cell first_cell + i.
  CellView view(int64_t i) const;
};

}  // namespace scgraft
