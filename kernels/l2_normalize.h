// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "runtime/context.h"
#include "runtime/tensor_view.h"

namespace scgraft {

// y[r] = x[r] / max(|x[r]|, 1e-12).   x, y [rows, dim] f32 or f64; y may be x.
//   norm [rows]  the |x[r]| used, type of x; empty when no backward pass follows
// Source: torch.nn.functional.normalize.
void l2_normalize(Context& ctx, ConstTensorView x, TensorView y, TensorView norm);

// dx = (dy - y (y . dy)) / norm, or dy / norm for a row whose norm is at the floor of 1e-12.
// Overwrites dx; dx may be dy.
void l2_normalize_backward(Context& ctx, ConstTensorView y, ConstTensorView norm,
                           ConstTensorView dy, TensorView dx);

}  // namespace scgraft
