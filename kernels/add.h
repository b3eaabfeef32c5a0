// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "runtime/context.h"
#include "runtime/tensor_view.h"

namespace scgraft {

// y = a + scale b, element by element; with an empty a, y = scale b.
//
//   a, b, y  any equal shape, f32 or f64, on CUDA f32, bf16 or f16; y overwritten; y may be a or b
//
// Throws ShapeError or TypeError when something does not fit.
void add(Context& ctx, ConstTensorView a, ConstTensorView b, TensorView y, double scale = 1);

// y[index[i]] += x[i], row by row.
//
//   x      [n, dim]     f32 or f64, on CUDA f32, bf16 or f16
//   index  [n]          i32, different rows of y
//   y      [rows, dim]  type of x, accumulated
//
// Throws ShapeError or TypeError when something does not fit. The index is not looked at: its
// caller knows the rows to be different and inside y.
void add_rows(Context& ctx, ConstTensorView x, ConstTensorView index, TensorView y);

namespace cuda {  // in add.cu; add.cc calls these after its checks
void add(Context& ctx, ConstTensorView a, ConstTensorView b, TensorView y, double scale);
void add_rows(Context& ctx, ConstTensorView x, ConstTensorView index, TensorView y);
}  // namespace cuda

}  // namespace scgraft
