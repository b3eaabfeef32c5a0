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
  for (auto* array : {&offsets_, &cell_offsets_, &gene_offsets_, &value_offsets_, &row_cells_,
                      &zeros_, &labels_, &unique_genes_, &gene_index_, &gene_use_offsets_,
                      &gene_use_tokens_, &value_index_, &value_use_offsets_, &value_use_tokens_})
    array->device = {};
  for (auto* array : {&unique_values_, &values_, &targets_}) array->device = {};
  ids_.device = masked_.device = {};

  offsets_.host.assign(1, 0);
  cell_offsets_.host.assign(1, 0);
  ids_.host.clear();
  labels_.host.clear();
  values_.host.clear();
  targets_.host.clear();
  masked_.host.clear();
  std::vector<int32_t>& genes = gene_index_.host;  // holds the ids until they are deduplicated
  genes.clear();
  const auto append = [](auto& to, const auto& from) {
    to.host.insert(to.host.end(), from.begin(), from.end());
  };
  for (const CellView& cell : cells) {
    require(cell.genes.size() == cell.values.size(), "a cell has ", cell.genes.size(),
            " genes and ", cell.values.size(), " values");
    append(gene_index_, cell.genes);
    append(values_, cell.values);
    append(targets_, cell.targets);
    append(masked_, cell.masked);
    offsets_.host.push_back(static_cast<int32_t>(genes.size()));
    cell_offsets_.host.push_back(static_cast<int32_t>(offsets_.host.size()) - 1);
    ids_.host.push_back(cell.cell);
    labels_.host.push_back(cell.label);
  }
  const size_t tokens = values_.host.size();
  require(targets_.host.empty() || targets_.host.size() == tokens,
          "either all cells of a batch have targets or none");
  require(masked_.host.empty() || masked_.host.size() == tokens,
          "either all cells of a batch have a mask or none");
  const std::vector<int32_t> ids = genes;
  deduplicate(
      ids, [](int32_t id) { return id; }, unique_genes_.host, gene_index_.host,
      gene_use_offsets_.host, gene_use_tokens_.host);
  deduplicate(
      values_.host, [](float v) { return std::bit_cast<uint32_t>(v); }, unique_values_.host,
      value_index_.host, value_use_offsets_.host, value_use_tokens_.host);
  gene_offsets_.host[1] = static_cast<int32_t>(unique_genes_.host.size());
  value_offsets_.host[1] = static_cast<int32_t>(unique_values_.host.size());
}

void TokenBatch::pack(Device device, std::span<const CellView> cells) {
  assign(cells);
  if (device.is_cpu()) return;
  row_cells_.host.clear();
  for (size_t cell = 0; cell < cells.size(); ++cell)
    row_cells_.host.insert(row_cells_.host.end(), cells[cell].genes.size(),
                           static_cast<int32_t>(cell));
  zeros_.host.assign(std::max(unique_genes_.host.size(), unique_values_.host.size()), 0);
}

void TokenBatch::assign(Context& ctx, std::span<const CellView> cells) {
  pack(ctx.device(), cells);
  with_arrays([&](auto&... arrays) { memory_.send(ctx, arrays...); });
}

void TokenBatch::prepare(Device device, std::span<const CellView> cells) {
  pack(device, cells);
  if (device.is_cpu()) return;
  with_arrays([&](auto&... arrays) { memory_.stage(device, arrays...); });
}

void TokenBatch::send(Context& ctx, const Stream& copies) {
  if (ctx.device().is_cpu()) return;
  if (!sent_) sent_.emplace(ctx.device());
  if (used_) copies.wait(*used_);
  with_arrays([&](auto&... arrays) { memory_.transfer(copies, arrays...); });
  sent_->record(copies);
  ctx.stream().wait(*sent_);
}

void TokenBatch::release(Context& ctx) {
  if (ctx.device().is_cpu()) return;
  if (!used_) used_.emplace(ctx.device());
  used_->record(ctx.stream());
}

void TokenBatch::reserve(Context& ctx, int64_t cells, int64_t tokens) {
  if (ctx.device().is_cpu()) return;
  // Every gene and value of its own is the most there can be; offsets are one more.
  int64_t nbytes = 0;
  const auto add = [&](int64_t count, int64_t size) {
    nbytes += ((count + 2) * size / DeviceArrays::kGap + 1) * DeviceArrays::kGap;
  };
  add(cells, size_of(DType::i64));
  for (const int64_t count : {cells, cells, cells, int64_t{0}, int64_t{0}}) add(count, 4);
  for (int i = 0; i < 12; ++i) add(tokens, 4);
  add(tokens, 1);
  memory_.reserve(ctx.device(), nbytes);
}

Packing TokenBatch::packed(const PreparedArray<int32_t>& offsets, const PreparedArray<int64_t>* ids,
                           ConstTensorView row_cells) {
  Packing packing =
      ids != nullptr ? Packing::over(offsets.host, ids->host) : Packing::over(offsets.host);
  if (offsets.device.empty()) return packing;
  packing.cu_seqlens = offsets.device;
  if (ids != nullptr) packing.cell_ids = ids->device;
  packing.row_cells = row_cells;
  return packing;
}

Packing TokenBatch::cell_rows() const {
  // Row i belongs to cell i, and cell i begins at row i.
  const ConstTensorView cells = cell_offsets_.device.empty()
                                    ? ConstTensorView()
                                    : cell_offsets_.device.rows(0, this->cells());
  return packed(cell_offsets_, &ids_, cells);
}

RowUses TokenBatch::gene_uses() const {
  return {gene_use_offsets_.view(), gene_use_tokens_.view()};
}
RowUses TokenBatch::value_uses() const {
  return {value_use_offsets_.view(), value_use_tokens_.view()};
}

}  // namespace scgraft
