// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <span>

#include "kernels/embedding_sum.h"
#include "model/device_arrays.h"

namespace scgraft {

// Which row of a table each of n items uses, and which items use each row, where operations find
// it: for embedding_sum() and its gradient.
class RowIndex {
 public:
  // Replaces the content. rows [n], each 0 <= row < table_rows; throws ShapeError otherwise.
  void assign(Context& ctx, std::span<const int32_t> rows, int64_t table_rows);

  ConstTensorView index() const { return index_.view(); }                    // [n] i32
  RowUses uses() const { return {use_offsets_.view(), use_items_.view()}; }  // items by row

 private:
  PreparedArray<int32_t> index_, use_offsets_, use_items_;
  DeviceArrays memory_;
};

}  // namespace scgraft
