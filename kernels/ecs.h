// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "runtime/context.h"
#include "runtime/tensor_view.h"

namespace scgraft {

// Elastic cell similarity of a batch of cell embeddings. With C the cosine matrix of the rows of x,
// its diagonal set to 0 and negative entries set to 0:
//
//   loss = mean over all cells^2 entries of 1 - (C_ij - threshold)^2
//
//   x     [cells, dim]  f32 or f64, on CUDA f32, bf16 or f16
//   loss  [1]           sum_type() of x, overwritten
//   dx    [cells, dim]  type of x, accumulated: += scale * dloss/dx; empty when not wanted
// Norms are floored at 1e-12.
// Throws ShapeError or TypeError when something does not fit.
// Source: scGPT's ECS objective (unit diagonal replaced by 0).
void ecs(Context& ctx, ConstTensorView x, double threshold, double scale, TensorView loss,
         TensorView dx);

namespace cuda {  // in ecs.cu; ecs.cc calls this after its checks
void ecs(Context& ctx, ConstTensorView x, double threshold, double scale, TensorView loss,
         TensorView dx);
}  // namespace cuda

}  // namespace scgraft
