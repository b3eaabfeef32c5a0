// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <numeric>
#include <vector>

#include "tests/training/tiny_cells.h"

namespace scgraft {

// Cells of a store with the tokens of another model.
class OtherCells {
 public:
  const std::vector<CellView>& views() const { return views_; }

 protected:
  void make_views(const std::vector<CellView>& cells) {
    for (size_t i = 0; i < cells.size(); ++i) {
      views_.push_back(cells[i]);
      views_.back().genes = genes_[i];
      views_.back().values = values_[i];
    }
  }

  std::vector<std::vector<int32_t>> genes_;
  std::vector<std::vector<float>> values_;

 private:
  std::vector<CellView> views_;
};

// Values are places.
class PlacedCells : public OtherCells {
 public:
  // length: of every cell, whose tokens are bins then; 0: as it is.
  PlacedCells(const std::vector<CellView>& cells, size_t length) {
    for (const CellView& cell : cells) {
      genes_.emplace_back(cell.genes.begin(), cell.genes.end());
      if (length > 0) {
        genes_.back().resize(length, 5);
        for (int32_t& gene : genes_.back()) gene %= 7;
      }
      values_.emplace_back(genes_.back().size());
      std::iota(values_.back().begin(), values_.back().end(), 0.0f);
    }
    make_views(cells);
  }
};

// Entries of scFoundation, T and S behind the genes.
class EntryCells : public OtherCells {
 public:
  explicit EntryCells(const std::vector<CellView>& cells) {
    for (const CellView& cell : cells) {
      auto& genes = genes_.emplace_back(cell.genes.begin(), cell.genes.end());
      auto& values = values_.emplace_back();
      for (const int32_t gene : genes) values.push_back(0.4f * static_cast<float>(gene % 5 + 1));
      genes.insert(genes.end(), {kTinyVocab, kTinyVocab + 1});
      values.insert(values.end(), {4.0f, 0.1f * static_cast<float>(cell.genes.size())});
    }
    make_views(cells);
  }
};

}  // namespace scgraft
