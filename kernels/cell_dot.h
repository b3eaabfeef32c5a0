// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "kernels/packing.h"
#include "runtime/context.h"
#include "runtime/tensor_view.h"

namespace scgraft {

// Inner product of every token with a vector of its cell:  y[t] = x[t] . c[cell of t].
//
//   x  [tokens, dim], c [cells, dim]   f32 or f64, on CUDA f32, bf16 or f16
//   y  [tokens]                        type of x, overwritten
//
// Throws ShapeError or TypeError when something does not fit.
// Source: the "inner product" decoder of scGPT, one gene at a time.
void cell_dot(Context& ctx, ConstTensorView x, ConstTensorView c, const Packing& packing,
              TensorView y);

// dx[t] = dy[t] c[cell of t],  dc[b] = sum over the tokens t of cell b of dy[t] x[t].
//
//   dy  [tokens]        type of x
//   dx  [tokens, dim]   overwritten; empty when not wanted
//   dc  [cells, dim]    overwritten; empty when not wanted; summed as sum_cell_rows() does
//
// Throws as cell_dot() does.
void cell_dot_backward(Context& ctx, ConstTensorView x, ConstTensorView c, ConstTensorView dy,
                       const Packing& packing, TensorView dx, TensorView dc);

namespace cuda {  // in cell_dot.cu; cell_dot.cc calls these after its checks
void cell_dot(Context& ctx, ConstTensorView x, ConstTensorView c, const Packing& packing,
              TensorView y);
void cell_dot_backward(Context& ctx, ConstTensorView x, ConstTensorView c, ConstTensorView dy,
                       const Packing& packing, TensorView dx, TensorView dc);
}  // namespace cuda

}  // namespace scgraft
