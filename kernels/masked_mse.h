// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "kernels/packing.h"
#include "runtime/context.h"
#include "runtime/tensor_view.h"

namespace scgraft {

// Squared error over the tokens that were hidden, and its gradient in the same pass:
//
//   loss[b]  = sum over masked tokens t of cell b of (x[t] - target[t])^2
//   dx[t]    = scale * 2 * (x[t] - target[t])  where masked, else 0
//
//   x, target [tokens]  f32 or f64
//   mask      [tokens]  u8, not 0 = counts
//   loss      [cells]   type of x, overwritten (not scaled)
//   dx        [tokens]  overwritten; empty when not wanted; may be x
// The caller divides by the number of masked tokens of the whole batch (scale = 1 / that number;
// nothing masked: loss 0, scale 0). A token that does not count may hold anything, NaN included.
// Throws ShapeError or TypeError when something does not fit.
// Source: scGPT's masked mean squared error.
void masked_mse(Context& ctx, ConstTensorView x, ConstTensorView target, ConstTensorView mask,
                const Packing& packing, double scale, TensorView loss, TensorView dx);

}  // namespace scgraft
