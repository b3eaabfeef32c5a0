// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <numeric>
#include <vector>

#include "tests/training/tiny_cells.h"

namespace scgraft {

// Cells as other models take them: values are places.
class PlacedCells {
 public:
  // length: of every cell, whose tokens are bins then; 0: as it is.
  PlacedCells(const std::vector<CellView>& cells, size_t length) {
    places_.resize(kTinyVocab);
    std::iota(places_.begin(), places_.end(), 0.0f);
    for (const CellView& cell : cells) {
      genes_.emplace_back(cell.genes.begin(), cell.genes.end());
      if (length > 0) {
        genes_.back().resize(length, 5);
        for (int32_t& gene : genes_.back()) gene %= 7;
      }
    }
    for (size_t i = 0; i < cells.size(); ++i) {
      views_.push_back(cells[i]);
      views_.back().genes = genes_[i];
      views_.back().values = std::span(places_).first(genes_[i].size());
    }
  }
  const std::vector<CellView>& views() const { return views_; }

 private:
  std::vector<std::vector<int32_t>> genes_;
  std::vector<float> places_;
  std::vector<CellView> views_;
};

}  // namespace scgraft
