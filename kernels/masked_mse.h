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
//   x         [tokens]  f32 or f64, on CUDA f32, bf16 or f16
//   target    [tokens]  sum_type() of x
//   mask      [tokens]  u8, not 0 = counts
//   loss      [cells]   sum_type() of x, overwritten (not scaled)
//   dx        [tokens]  type of x, overwritten; empty when not wanted; may be x
//   factor    [1]       f64, another factor of dx, known on the device only; empty: 1
// The caller divides by the number of masked tokens of the whole batch (scale = 1 / that number;
// nothing masked: loss 0, scale 0). A token that does not count may hold anything, NaN included.
// Throws ShapeError or TypeError when something does not fit.
// Source: scGPT's masked mean squared error.
void masked_mse(Context& ctx, ConstTensorView x, ConstTensorView target, ConstTensorView mask,
                const Packing& packing, double scale, TensorView loss, TensorView dx,
                ConstTensorView factor = {});

namespace cuda {  // in masked_mse.cu; masked_mse.cc calls this after its checks
void masked_mse(Context& ctx, ConstTensorView x, ConstTensorView target, ConstTensorView mask,
                const Packing& packing, double scale, TensorView loss, TensorView dx,
                ConstTensorView factor);
}  // namespace cuda

}  // namespace scgraft
