// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "kernels/packing.h"
#include "runtime/context.h"
#include "runtime/tensor_view.h"

namespace scgraft {

// Inner product of every token with a vector of its cell:  y[t] = x[t] . c[cell of t].
//
//   x  [tokens, dim], c [cells, dim]   f32 or f64
//   y  [tokens]                        overwritten
void cell_dot(Context& ctx, ConstTensorView x, ConstTensorView c, const Packing& packing,
              TensorView y);

// dx[t] = dy[t] c[cell],  dc[b] = sum over the tokens of b of dy[t] x[t], in order.
// Overwrites dx and dc; an empty view means that gradient is not wanted.
void cell_dot_backward(Context& ctx, ConstTensorView x, ConstTensorView c, ConstTensorView dy,
                       const Packing& packing, TensorView dx, TensorView dc);

}  // namespace scgraft
