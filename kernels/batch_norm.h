// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "runtime/context.h"
#include "runtime/tensor_view.h"

namespace scgraft {

// Mean and biased variance of every feature over the rows; zeros when there are none.
//
//   mean[f] = sum over rows t of x[t, f] / rows
//   var[f]  = sum over rows t of (x[t, f] - mean[f])^2 / rows
//
//   x          [rows, dim]  f32 or f64, on CUDA f32, bf16 or f16
//   mean, var  [dim]        sum_type() of x, overwritten
//
// Summed kPanelRows rows at a time, then the panels in order.
// Throws ShapeError or TypeError when something does not fit.
void batch_moments(Context& ctx, ConstTensorView x, TensorView mean, TensorView var);

// What batch norm does to a feature:  y[t] = gamma (x[t] - mean) / sqrt(var + eps) + beta.
//
//   mean, var    [dim]  sum_type() of x: those of the batch, or what was collected in training
//   gamma, beta  [dim]  sum_type() of x; both empty: 1 and 0
struct BatchNormMap {
  ConstTensorView mean;
  ConstTensorView var;
  ConstTensorView gamma = {};
  ConstTensorView beta = {};
  double eps = 1e-5;
};

// y = map(x).
//
//   x, y  [rows, dim]  f32 or f64, on CUDA f32, bf16 or f16; y overwritten; y may be x
//
// Throws as batch_moments() does. Source: Ioffe and Szegedy 2015; torch.nn.BatchNorm1d.
void batch_norm(Context& ctx, ConstTensorView x, const BatchNormMap& map, TensorView y);

// Gradients by x and by the parameters. With xhat = (x - mean) / sqrt(var + eps):
//
//   dgamma += sum over rows of dy xhat,   dbeta += sum over rows of dy
//   dx      = gamma / sqrt(var + eps) (dy - of_batch (mean of dy + xhat mean of (dy xhat)))
//
//   of_batch       the moments of the map are those of x and change with it; else they are
//                  constants
//   dy, dx         [rows, dim]  type of x; dx overwritten, may be dy; empty when not wanted
//   dgamma, dbeta  [dim]        sum_type() of x, accumulated; empty when not wanted
//
// Throws as batch_moments() does.
void batch_norm_backward(Context& ctx, ConstTensorView x, ConstTensorView dy,
                         const BatchNormMap& map, bool of_batch, TensorView dx, TensorView dgamma,
                         TensorView dbeta);

namespace cuda {  // in batch_norm.cu; batch_norm.cc calls these after its checks
void batch_moments(Context& ctx, ConstTensorView x, TensorView mean, TensorView var);
void batch_norm(Context& ctx, ConstTensorView x, const BatchNormMap& map, TensorView y);
void batch_norm_backward(Context& ctx, ConstTensorView x, ConstTensorView dy,
                         const BatchNormMap& map, bool of_batch, TensorView dx, TensorView dgamma,
                         TensorView dbeta);
}  // namespace cuda

}  // namespace scgraft
