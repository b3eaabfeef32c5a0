// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "runtime/tensor.h"
#include "runtime/tensor_view.h"

namespace scgraft {

class Context;

// How the tokens of several cells lie one after another in a packed tensor [tokens, ...]:
// cell b owns rows cu_seqlens[b] .. cu_seqlens[b+1]. There is no padding.
//
//   cu_seqlens  [cells + 1]  i32, cu_seqlens[0] = 0, not decreasing
//   cell_ids    [cells]      i64, number of each cell in its data set: the coordinate that dropout
//                            masks depend on. May be empty where nothing is dropped.
//   row_cells   [tokens]     i32, the cell that owns each row, so that kernels need not search.
//                            Empty on the CPU.
//
// `offsets` and `ids` are the same numbers in host memory (on the CPU: the same memory).
struct Packing {
  ConstTensorView cu_seqlens;
  ConstTensorView cell_ids;
  ConstTensorView row_cells;
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

// A packing on the device of a context, and the memory behind it. On the CPU it is the packing that
// came in.
class DevicePacking {
 public:
  DevicePacking() = default;
  DevicePacking(Context& ctx, const Packing& host) { assign(ctx, host); }

  // Replaces the content, in the order of the context's stream. The numbers in host memory must
  // outlive this; memory of the device is kept and only grows.
  void assign(Context& ctx, const Packing& host);
  const Packing& packing() const { return packing_; }

 private:
  Packing packing_;
  std::vector<int32_t> row_cells_;
  Tensor offsets_memory_, ids_memory_, cells_memory_;
};

// A packing as an argument of a kernel.
struct PackedRows {
  const int32_t* offsets = nullptr;    // [cells + 1]
  const int64_t* ids = nullptr;        // [cells], or null when the packing has none
  const int32_t* row_cells = nullptr;  // [tokens]
  int64_t cells = 0;
  int64_t tokens = 0;
};
// Throws DeviceError when the packing is not on the context's device, ShapeError when it has no
// offsets or no row_cells.
PackedRows packed_rows(const char* op, const Context& ctx, const Packing& packing);

// Rows of a packed tensor that one unit of work owns: at most kPanelRows, all of one cell. Sums
// over tokens are formed panel by panel in this order, so that they do not depend on the thread
// count or on which cells share a batch.
inline constexpr int64_t kPanelRows = 64;

}  // namespace scgraft
