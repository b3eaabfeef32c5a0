// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <vector>

#include "kernels/packing.h"

namespace scgraft {

// y[t] = weight[t] x[t]: every row of a packed tensor times a number of its own, which is weighted
// pooling the other way round where every cell is one token. It is its own gradient by x.
class RowScale {
 public:
  // The number of rows of the calls that follow.
  void assign(Context& ctx, int64_t rows);
  //   x, y    [rows, dim]  f32 or f64, on CUDA f32, bf16 or f16; y overwritten
  //   weight  [rows]       of any of these types
  void apply(Context& ctx, ConstTensorView x, ConstTensorView weight, TensorView y) const;

 private:
  std::vector<int32_t> offsets_;
  DevicePacking rows_;
};

}  // namespace scgraft
