// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <span>

#include "runtime/tensor_view.h"

namespace scgraft {

// How the tokens of several cells lie one after another in a packed tensor [tokens, ...]:
// cell b owns rows cu_seqlens[b] .. cu_seqlens[b+1]. There is no padding.
//
//   cu_seqlens  [cells + 1]  i32, cu_seqlens[0] = 0, not decreasing
//   cell_ids    [cells]      i64, number of each cell in its data set: the coordinate that dropout
//                            masks depend on. May be empty where nothing is dropped.
//
// `offsets` and `ids` are the same numbers in host memory (on the CPU: the same memory).
struct Packing {
  ConstTensorView cu_seqlens;
  ConstTensorView cell_ids;
  std::span<const int32_t> offsets;
  std::span<const int64_t> ids;

  int64_t cells() const { return static_cast<int64_t>(offsets.size()) - 1; }
  int64_t tokens() const { return offsets.back(); }
  int64_t begin(int64_t cell) const { return offsets[static_cast<size_t>(cell)]; }
  int64_t end(int64_t cell) const { return offsets[static_cast<size_t>(cell) + 1]; }
  int64_t length(int64_t cell) const { return end(cell) - begin(cell); }
  // The cell that owns a row, 0 <= row < tokens(), by binary search.
  int64_t cell_of(int64_t row) const {
    // The last cell that begins at or before the row: cells without rows come before it.
    return std::upper_bound(offsets.begin(), offsets.end(), row) - offsets.begin() - 1;
  }

  // A packing over host memory that outlives it.
  static Packing over(std::span<const int32_t> offsets, std::span<const int64_t> ids = {}) {
    Packing p;
    p.offsets = offsets;
    p.ids = ids;
    p.cu_seqlens = view_of(offsets.data(), Shape{static_cast<int64_t>(offsets.size())});
    if (!ids.empty()) p.cell_ids = view_of(ids.data(), Shape{static_cast<int64_t>(ids.size())});
    return p;
  }
};

// The packing of a plain list of rows, as one cell.
class RowList {
 public:
  explicit RowList(int64_t rows) : offsets_{0, static_cast<int32_t>(rows)} {}
  Packing packing() const { return Packing::over(offsets_); }

 private:
  std::array<int32_t, 2> offsets_;
};

// Rows of a packed tensor that one unit of work owns: at most kPanelRows, all of one cell. Sums
// over tokens are formed panel by panel in this order, so that they do not depend on the thread
// count or on which cells share a batch.
inline constexpr int64_t kPanelRows = 64;

}  // namespace scgraft
