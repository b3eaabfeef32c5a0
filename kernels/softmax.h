// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "runtime/context.h"
#include "runtime/tensor_view.h"

namespace scgraft {

// y[r, j] = exp(x[r, j] - max_k x[r, k]) / sum_i exp(x[r, i] - max_k x[r, k]); a row with a NaN
// becomes NaN.
//
//   x, y  [rows, dim]  f32 or f64, on CUDA f32, bf16 or f16; y overwritten; y may be x
//
// Sums are f32, of f64 rows f64. A row's bits do not depend on which other rows are there.
// Throws ShapeError or TypeError when something does not fit.
// Source: torch.nn.Softmax over the last dimension.
void softmax(Context& ctx, ConstTensorView x, TensorView y);

// dx[r, j] = y[r, j] (dy[r, j] - sum_i y[r, i] dy[r, i]).
//
//   y       as the forward pass left it
//   dy, dx  [rows, dim]  type of y; dx overwritten; dx may be dy
//
// Throws as softmax() does.
void softmax_backward(Context& ctx, ConstTensorView y, ConstTensorView dy, TensorView dx);

namespace cuda {  // in softmax.cu; softmax.cc calls these after its checks
void softmax(Context& ctx, ConstTensorView x, TensorView y);
void softmax_backward(Context& ctx, ConstTensorView y, ConstTensorView dy, TensorView dx);
}  // namespace cuda

}  // namespace scgraft
