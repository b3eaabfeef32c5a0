// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "runtime/context.h"
#include "runtime/tensor_view.h"

namespace scgraft {

// y[r] = x[r] / max(|x[r]|, 1e-12); a row with a NaN becomes NaN.
//
//   x, y  [rows, dim]  f32 or f64, on CUDA f32, bf16 or f16; y overwritten; y may be x
//   norm  [rows]       the divisor, sum_type() of x, overwritten; empty when no backward pass
//                      follows
//
// Throws ShapeError or TypeError when something does not fit.
// Source: torch.nn.functional.normalize.
void l2_normalize(Context& ctx, ConstTensorView x, TensorView y, TensorView norm);

// dx = (dy - y (y . dy)) / norm, or dy / norm for a row whose norm is at the floor of 1e-12.
//
//   y, norm  as the forward pass left them
//   dy, dx   [rows, dim]  type of y; dx overwritten; dx may be dy
//
// Throws as l2_normalize() does.
void l2_normalize_backward(Context& ctx, ConstTensorView y, ConstTensorView norm,
                           ConstTensorView dy, TensorView dx);

namespace cuda {  // in l2_normalize.cu; l2_normalize.cc calls these after its checks
void l2_normalize(Context& ctx, ConstTensorView x, TensorView y, TensorView norm);
void l2_normalize_backward(Context& ctx, ConstTensorView y, ConstTensorView norm,
                           ConstTensorView dy, TensorView dx);
}  // namespace cuda

}  // namespace scgraft
