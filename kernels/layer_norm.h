// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "kernels/dropout.h"
#include "kernels/packing.h"
#include "runtime/context.h"
#include "runtime/tensor_view.h"

namespace scgraft {

// Layer norm of a residual sum, row by row (two passes, biased variance):
//
//   z = x + drop(branch)      xhat = (z - mean(z)) * rstd,  rstd = 1/sqrt(var(z) + eps)
//   y = gamma * xhat + beta
//
//   x, branch  [rows, dim]  f32 or f64, on CUDA f32, bf16 or f16; branch may be empty (z = x)
//   packing    of the rows, for the dropout coordinates; may be null when nothing is dropped
//   gamma, beta [dim]       sum_type() of x: its type, f32 for the 16-bit types
//   y          [rows, dim]  type of x, overwritten; y may be x or branch
//   rstd       [rows]       sum_type() of x, overwritten; empty when no backward pass follows
//   xhat       [rows, dim]  type of x, overwritten; empty when the backward pass works from y
//
// Throws ShapeError or TypeError when something does not fit or eps is negative, ConfigError when
// the dropout is not in [0, 1).
// Source: torch.nn.LayerNorm.
void layer_norm(Context& ctx, ConstTensorView x, ConstTensorView branch, Dropout dropout,
                const Packing* packing, ConstTensorView gamma, ConstTensorView beta, double eps,
                TensorView y, TensorView rstd, TensorView xhat);

// What the backward pass of layer_norm reads.
struct LayerNormSaved {
  ConstTensorView y;     // [rows, dim] the output, or empty when xhat is given
  ConstTensorView xhat;  // [rows, dim] or empty: then xhat = (y - beta) / gamma
  ConstTensorView rstd;  // [rows]
};

// With g = gamma * dy:  dz = rstd * (g - mean(g) - xhat * mean(g * xhat)).
//
//   dy       [rows, dim]  f32 or f64, on CUDA f32, bf16 or f16
//   dx       [rows, dim]  overwritten with dz; may be dy; empty when not wanted
//   dbranch  [rows, dim]  overwritten with drop'(dz); empty when not wanted or the same as dx
//   dgamma, dbeta [dim]   type of gamma, accumulated (+=): sums over rows of dy * xhat and dy;
//            empty when frozen.
//            With a packing the rows of a cell are summed first, then cells are added in order.
//
// Throws as layer_norm() does.
void layer_norm_backward(Context& ctx, ConstTensorView dy, const LayerNormSaved& saved,
                         ConstTensorView gamma, ConstTensorView beta, Dropout dropout,
                         const Packing* packing, TensorView dx, TensorView dbranch,
                         TensorView dgamma, TensorView dbeta);

// True when xhat can be taken from y without loss: every |beta / gamma| < 8 and gamma != 0. Waits
// for tensors on a CUDA device.
bool layer_norm_is_invertible(ConstTensorView gamma, ConstTensorView beta);

namespace cuda {  // in layer_norm.cu; layer_norm.cc calls these after its checks
void layer_norm(Context& ctx, ConstTensorView x, ConstTensorView branch, Dropout dropout,
                const Packing* packing, ConstTensorView gamma, ConstTensorView beta, double eps,
                TensorView y, TensorView rstd, TensorView xhat);
void layer_norm_backward(Context& ctx, ConstTensorView dy, const LayerNormSaved& saved,
                         ConstTensorView gamma, ConstTensorView beta, Dropout dropout,
                         const Packing* packing, TensorView dx, TensorView dbranch,
                         TensorView dgamma, TensorView dbeta);
}  // namespace cuda

}  // namespace scgraft
