// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "model/batch.h"
#include "model/tokenised_cells.h"

namespace scgraft {

// Tokens of many cells in memory, so that a data set is read and tokenised once. Packed: eight
// bytes per token, four where the values of a cell are its places 0, 1, 2, ... (Geneformer,
// scBERT).
class TokenStore {
 public:
  // Adds all cells of a chunk.
  void append(const TokenisedCells& chunk);
  // Adds those of a chunk's cells that `selection` names: numbers in the data set, ascending. The
  // same selection may be passed with every chunk.
  void append(const TokenisedCells& chunk, std::span<const int64_t> selection);

  int64_t size() const { return static_cast<int64_t>(cells_.size()); }
  int64_t tokens() const { return offsets_.back(); }
  int64_t longest() const;  // tokens of the longest cell; 0 when empty

  // The i-th cell added; its CellView::cell is the number in the data set. Valid until append().
  CellView view(int64_t i) const;

 private:
  void append_one(const CellView& cell);

  std::vector<int64_t> cells_;
  std::vector<int64_t> offsets_ = {0};
  std::vector<int32_t> genes_;
  std::vector<int64_t> values_at_;  // [cells] where they begin; -1: places
  std::vector<float> values_;
  std::vector<float> places_;  // 0, 1, 2, ... as many as the longest cell has tokens
};

}  // namespace scgraft
