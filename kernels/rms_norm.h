// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "kernels/dropout.h"
#include "kernels/packing.h"
#include "runtime/context.h"
#include "runtime/tensor_view.h"

namespace scgraft {

// RMS norm of a residual sum, row by row:
//
//   z = x + drop(branch)      xhat = z * rstd,  rstd = 1/sqrt(mean(z^2) + eps)
//   y = gamma * xhat
//
//   x, branch  [rows, dim]  f32 or f64, on CUDA f32, bf16 or f16; branch may be empty (z = x)
//   packing    of the rows, for the dropout coordinates; may be null when nothing is dropped
//   gamma      [dim]        sum_type() of x: its type, f32 for the 16-bit types
//   y          [rows, dim]  type of x, overwritten; y may be x or branch
//   rstd       [rows]       sum_type() of x, overwritten; empty when no backward pass follows
//   xhat       [rows, dim]  type of x, overwritten; empty when the backward pass works from y
//
// Throws ShapeError or TypeError when something does not fit or eps is negative, ConfigError when
// the dropout is not in [0, 1).
// Source: Zhang and Sennrich 2019 (RMSNorm); torch.nn.RMSNorm.
void rms_norm(Context& ctx, ConstTensorView x, ConstTensorView branch, Dropout dropout,
              const Packing* packing, ConstTensorView gamma, double eps, TensorView y,
              TensorView rstd, TensorView xhat);

// What the backward pass of rms_norm reads.
struct RmsNormSaved {
  ConstTensorView y;     // [rows, dim] the output, or empty when xhat is given
  ConstTensorView xhat;  // [rows, dim] or empty: then xhat = y / gamma
  ConstTensorView rstd;  // [rows]
};

// With g = gamma * dy:  dz = rstd * (g - xhat * mean(g * xhat)).
//
//   dy       [rows, dim]  f32 or f64, on CUDA f32, bf16 or f16
//   dx       [rows, dim]  overwritten with dz; may be dy; empty when not wanted
//   dbranch  [rows, dim]  overwritten with drop'(dz); empty when not wanted or the same as dx
//   dgamma   [dim]        type of gamma, accumulated (+=): sum over rows of dy * xhat; empty when
//            frozen. With a packing the rows of a cell are summed first, then cells are added in
//            order.
//
// Throws as rms_norm() does.
void rms_norm_backward(Context& ctx, ConstTensorView dy, const RmsNormSaved& saved,
                       ConstTensorView gamma, Dropout dropout, const Packing* packing,
                       TensorView dx, TensorView dbranch, TensorView dgamma);

// True when xhat can be taken from y without loss: every gamma is finite and |gamma| >= 2^-10, so
// that an f16 y keeps what is not small of xhat. Waits for a tensor on a CUDA device.
bool rms_norm_is_invertible(ConstTensorView gamma);

namespace cuda {  // in rms_norm.cu; rms_norm.cc calls these after its checks
void rms_norm(Context& ctx, ConstTensorView x, ConstTensorView branch, Dropout dropout,
              const Packing* packing, ConstTensorView gamma, double eps, TensorView y,
              TensorView rstd, TensorView xhat);
void rms_norm_backward(Context& ctx, ConstTensorView dy, const RmsNormSaved& saved,
                       ConstTensorView gamma, Dropout dropout, const Packing* packing,
                       TensorView dx, TensorView dbranch, TensorView dgamma);
}  // namespace cuda

}  // namespace scgraft
