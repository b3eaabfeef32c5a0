// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "runtime/context.h"
#include "runtime/tensor_view.h"

namespace scgraft {

// y[t] = [a[t], b[t]]: the features of two tensors side by side.
//
//   a  [rows, n], b [rows, m]  f32 or f64, on CUDA f32, bf16 or f16; n, m >= 1
//   y  [rows, n + m]           type of a, overwritten
//
// Throws ShapeError or TypeError when something does not fit. Source: torch.cat over features.
void join_columns(Context& ctx, ConstTensorView a, ConstTensorView b, TensorView y);

// The way back, which is its gradient: a[t] = y[t, :n], b[t] = y[t, n:].
//
//   y     [rows, n + m]              f32 or f64, on CUDA f32, bf16 or f16
//   a, b  [rows, n] and [rows, m]    type of y, overwritten; one of them may be empty: not wanted
//
// Throws as join_columns() does.
void split_columns(Context& ctx, ConstTensorView y, TensorView a, TensorView b);

namespace cuda {  // in join_columns.cu; join_columns.cc calls these after its checks
void join_columns(Context& ctx, ConstTensorView a, ConstTensorView b, TensorView y);
void split_columns(Context& ctx, ConstTensorView y, TensorView a, TensorView b);
}  // namespace cuda

}  // namespace scgraft
