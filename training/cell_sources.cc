// SPDX-License-Identifier: Apache-2.0
#include "training/cell_sources.h"

namespace scgraft {

void LabelledCells::view(std::span<const int64_t> cells, int64_t, std::vector<CellView>& views) {
  views.clear();
  for (const int64_t cell : cells) {
    const int64_t i = cells_[static_cast<size_t>(cell)];
    views.push_back(store_.view(i));
    views.back().label = labels_[static_cast<size_t>(i)];
  }
}

void MaskedCells::view(std::span<const int64_t> cells, int64_t epoch,
                       std::vector<CellView>& views) {
  views.clear();
  if (values_.size() < cells.size()) {
    values_.resize(cells.size());
    masked_.resize(cells.size());
  }
  for (size_t k = 0; k < cells.size(); ++k) {
    CellView view = store_.view(cells_[static_cast<size_t>(cells[k])]);
    values_[k].resize(view.values.size());
    masked_[k].resize(view.values.size());
    mask_values(view.values, options_, epoch, view.cell, values_[k], masked_[k]);
    view.targets = view.values;
    view.values = values_[k];
    view.masked = masked_[k];
    views.push_back(view);
  }
}

}  // namespace scgraft
