// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "kernels/packing.h"
#include "runtime/context.h"
#include "runtime/tensor_view.h"

namespace scgraft {

enum class Pooling {
  cls,       // y[b] = x[first token of b]
  mean,      // y[b] = mean of x over the tokens of b
  weighted,  // y[b] = sum over tokens of weight[t] * x[t]
};

// Cell embeddings from token rows.
//
//   x       [tokens, dim]  f32 or f64, on CUDA f32, bf16 or f16
//   weight  [tokens]       type of x; only for Pooling::weighted, else empty
//   y       [cells, dim]   type of x, overwritten; a cell without tokens gets zeros
//
// Throws ShapeError or TypeError when something does not fit.
// Source: scGPT's cell embeddings ("cls", "avg-pool", and "w-pool" before it is normalised), over
// the tokens that exist.
void pool(Context& ctx, Pooling kind, ConstTensorView x, ConstTensorView weight,
          const Packing& packing, TensorView y);

// Gradient by x:  dx[t] = dy[cell of t] times 1 or 0 (cls), 1 / length of the cell (mean), or
// weight[t] (weighted).
//
//   dy  [cells, dim]   f32 or f64, on CUDA f32, bf16 or f16
//   dx  [tokens, dim]  type of dy, overwritten
//
// Throws as pool() does.
void pool_backward(Context& ctx, Pooling kind, ConstTensorView dy, ConstTensorView weight,
                   const Packing& packing, TensorView dx);

// The largest value of every feature over the tokens of a cell, and the token that has it.
//
//   x   [tokens, dim]  f32 or f64, on CUDA f32, bf16 or f16
//   y   [cells, dim]   type of x, overwritten; a cell without tokens gets zeros, a NaN stays NaN
//   at  [cells, dim]   i32, overwritten: the row of x, the first of equal ones; -1 without tokens
//
// Throws as pool() does.
// Source: torch.max over a dimension.
void pool_max(Context& ctx, ConstTensorView x, const Packing& packing, TensorView y, TensorView at);

// Gradient by x:  dx[t, d] = dy[cell of t, d] where t is at[cell of t, d], else 0.
//
//   at  as the forward pass left it
//   dy  [cells, dim]   f32 or f64, on CUDA f32, bf16 or f16
//   dx  [tokens, dim]  type of dy, overwritten
//
// Throws as pool() does.
void pool_max_backward(Context& ctx, ConstTensorView dy, ConstTensorView at, const Packing& packing,
                       TensorView dx);

namespace cuda {  // in pool.cu; pool.cc calls these after its checks
void pool(Context& ctx, Pooling kind, ConstTensorView x, ConstTensorView weight,
          const Packing& packing, TensorView y);
void pool_backward(Context& ctx, Pooling kind, ConstTensorView dy, ConstTensorView weight,
                   const Packing& packing, TensorView dx);
void pool_max(Context& ctx, ConstTensorView x, const Packing& packing, TensorView y, TensorView at);
void pool_max_backward(Context& ctx, ConstTensorView dy, ConstTensorView at, const Packing& packing,
                       TensorView dx);
}  // namespace cuda

}  // namespace scgraft
