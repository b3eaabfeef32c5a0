// SPDX-License-Identifier: Apache-2.0
#include "model/batch.h"

#include <algorithm>
#include <bit>
#include <numeric>

#include "runtime/error.h"

namespace scgraft {
namespace {

// Distinct keys in ascending order of `before`, the index of each token's key, and the tokens by
// key (a stable counting sort).
template <class T, class Key>
void deduplicate(const std::vector<T>& items, Key key, std::vector<T>& unique,
                 std::vector<int32_t>& index, std::vector<int32_t>& use_offsets,
                 std::vector<int32_t>& use_tokens) {
  const size_t n = items.size();
  use_tokens.resize(n);
  std::iota(use_tokens.begin(), use_tokens.end(), 0);
  std::sort(use_tokens.begin(), use_tokens.end(), [&](int32_t a, int32_t b) {
    const auto ka = key(items[static_cast<size_t>(a)]);
    const auto kb = key(items[static_cast<size_t>(b)]);
    return ka != kb ? ka < kb : a < b;
  });
  unique.clear();
  use_offsets.clear();
  index.resize(n);
  for (size_t i = 0; i < n; ++i) {
    const T item = items[static_cast<size_t>(use_tokens[i])];
    if (unique.empty() || key(unique.back()) != key(item)) {
      unique.push_back(item);
      use_offsets.push_back(static_cast<int32_t>(i));
    }
    index[static_cast<size_t>(use_tokens[i])] = static_cast<int32_t>(unique.size()) - 1;
  }
  use_offsets.push_back(static_cast<int32_t>(n));
}

}  // namespace

void TokenBatch::assign(std::span<const CellView> cells) {
  offsets_.assign(1, 0);
  cell_offsets_.assign(1, 0);
  ids_.clear();
  labels_.clear();
  values_.clear();
  targets_.clear();
  masked_.clear();
  std::vector<int32_t>& genes = gene_index_;  // holds the ids until they are deduplicated
  genes.clear();
  for (const CellView& cell : cells) {
    require(cell.genes.size() == cell.values.size(), "a cell has ", cell.genes.size(),
            " genes and ", cell.values.size(), " values");
    genes.insert(genes.end(), cell.genes.begin(), cell.genes.end());
    values_.insert(values_.end(), cell.values.begin(), cell.values.end());
    targets_.insert(targets_.end(), cell.targets.begin(), cell.targets.end());
    masked_.insert(masked_.end(), cell.masked.begin(), cell.masked.end());
    offsets_.push_back(static_cast<int32_t>(genes.size()));
    cell_offsets_.push_back(static_cast<int32_t>(offsets_.size()) - 1);
    ids_.push_back(cell.cell);
    labels_.push_back(cell.label);
  }
  require(targets_.empty() || targets_.size() == values_.size(),
          "either all cells of a batch have targets or none");
  require(masked_.empty() || masked_.size() == values_.size(),
          "either all cells of a batch have a mask or none");
  const std::vector<int32_t> ids = genes;
  deduplicate(
      ids, [](int32_t id) { return id; }, unique_genes_, gene_index_, gene_use_offsets_,
      gene_use_tokens_);
  deduplicate(
      values_, [](float v) { return std::bit_cast<uint32_t>(v); }, unique_values_, value_index_,
      value_use_offsets_, value_use_tokens_);
}

RowUses TokenBatch::gene_uses() const {
  return {vector_view(gene_use_offsets_), vector_view(gene_use_tokens_)};
}
RowUses TokenBatch::value_uses() const {
  return {vector_view(value_use_offsets_), vector_view(value_use_tokens_)};
}

}  // namespace scgraft
