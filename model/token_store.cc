// SPDX-License-Identifier: Apache-2.0
#include "model/token_store.h"

#include <algorithm>

namespace scgraft {

void TokenStore::append(const TokenisedCells& chunk) {
  for (int64_t i = 0; i < chunk.cells(); ++i) append_one(chunk.view(i));
}

void TokenStore::append(const TokenisedCells& chunk, std::span<const int64_t> selection) {
  const int64_t end = chunk.first_cell + chunk.cells();
  auto next = std::lower_bound(selection.begin(), selection.end(), chunk.first_cell);
  for (; next != selection.end() && *next < end; ++next)
    append_one(chunk.view(*next - chunk.first_cell));
}

void TokenStore::append_one(const CellView& cell) {
  cells_.push_back(cell.cell);
  genes_.insert(genes_.end(), cell.genes.begin(), cell.genes.end());
  while (places_.size() < cell.values.size()) places_.push_back(static_cast<float>(places_.size()));
  const bool places =
      !cell.values.empty() && std::equal(cell.values.begin(), cell.values.end(), places_.begin());
  values_at_.push_back(places ? -1 : static_cast<int64_t>(values_.size()));
  if (!places) values_.insert(values_.end(), cell.values.begin(), cell.values.end());
  offsets_.push_back(static_cast<int64_t>(genes_.size()));
}

int64_t TokenStore::longest() const {
  int64_t longest = 0;
  for (size_t i = 0; i < cells_.size(); ++i)
    longest = std::max(longest, offsets_[i + 1] - offsets_[i]);
  return longest;
}

CellView TokenStore::view(int64_t i) const {
  const auto begin = static_cast<size_t>(offsets_[static_cast<size_t>(i)]);
  const auto length = static_cast<size_t>(offsets_[static_cast<size_t>(i) + 1]) - begin;
  const int64_t values_at = values_at_[static_cast<size_t>(i)];
  const float* values =
      values_at < 0 ? places_.data() : values_.data() + static_cast<size_t>(values_at);
  return {.cell = cells_[static_cast<size_t>(i)],
          .genes = {genes_.data() + begin, length},
          .values = {values, length},
          .targets = {},
          .masked = {}};
}

}  // namespace scgraft
