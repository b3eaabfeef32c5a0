// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "runtime/context.h"
#include "runtime/tensor_view.h"

namespace scgraft {

// Contrastive loss of two passes over the same cells: every row of x1 should be closest to its own
// row of x2.
//
//   s_ij = cos(x1_i, x2_j) / temperature
//   loss = mean_i (log(sum_j exp(s_ij)) - s_ii)
//
//   x1, x2    [cells, dim]  f32 or f64, on CUDA f32, bf16 or f16
//   loss      [1]           sum_type() of x1, overwritten (not scaled)
//   dx1, dx2  [cells, dim]  type of x1, accumulated: += scale * gradient; empty when not wanted;
//   may be the
//                           same view when x1 and x2 are the same rows
// Norms are floored at 1e-8.
// Throws ShapeError or TypeError when something does not fit, ConfigError when the temperature is
// not above 0. Source: scGPT's CCE objective, temperature 0.5.
void contrastive(Context& ctx, ConstTensorView x1, ConstTensorView x2, double temperature,
                 double scale, TensorView loss, TensorView dx1, TensorView dx2);

namespace cuda {  // in contrastive.cu; contrastive.cc calls this after its checks
void contrastive(Context& ctx, ConstTensorView x1, ConstTensorView x2, double temperature,
                 double scale, TensorView loss, TensorView dx1, TensorView dx2);
}  // namespace cuda

}  // namespace scgraft
