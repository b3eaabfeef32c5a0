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
//   x       [tokens, dim]  f32 or f64
//   weight  [tokens]       type of x; only for Pooling::weighted, else empty
//   y       [cells, dim]   overwritten; a cell without tokens gets zeros
void pool(Context& ctx, Pooling kind, ConstTensorView x, ConstTensorView weight,
          const Packing& packing, TensorView y);

// Gradient by x; overwrites all of dx [tokens, dim].
void pool_backward(Context& ctx, Pooling kind, ConstTensorView dy, ConstTensorView weight,
                   const Packing& packing, TensorView dx);

}  // namespace scgraft
