// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <span>

#include "kernels/update_state.h"
#include "runtime/context.h"
#include "runtime/tensor_view.h"

namespace scgraft {

// Euclidean norm of a flat gradient: squares are summed in f64 over fixed blocks of 4096 elements,
// then the block sums in order.
//
//   gradient  [n]  f32 or f64, on CUDA f32
//   norm      [1]  f64, overwritten (NaN or Inf when the gradient has one)
//
// Throws ShapeError or TypeError when something does not fit.
// Source: torch.nn.utils.clip_grad_norm_.
void gradient_norm(Context& ctx, ConstTensorView gradient, TensorView norm);

struct AdamWOptions {
  double learning_rate = 1e-4;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double max_norm = 0;        // clip the gradient to this norm; 0: do not clip
  double gradient_scale = 1;  // gradient and norm are this times the real ones
  int64_t step = 1;           // number of this update, from 1 (bias correction)
  ScaleRule scale_rule = {};  // with an UpdateState, which has the two before
};

// A run of the flat arrays with its own weight decay and learning-rate factor.
struct AdamWSegment {
  int64_t begin = 0;
  int64_t end = 0;
  double weight_decay = 0;
  double rate_factor = 1;
};

// One decoupled-decay Adam update of a flat parameter block. With lr = learning_rate * rate_factor,
// length = norm / gradient_scale, c = min(1, max_norm / length) (1 without clipping) and
// g = c * gradient / gradient_scale:
//
//   p *= 1 - lr * weight_decay
//   m  = beta1 m + (1 - beta1) g        v = beta2 v + (1 - beta2) g^2
//   p -= lr * (m / (1 - beta1^step)) / (sqrt(v / (1 - beta2^step)) + eps)
//
//   parameter, m, v [n]  f32 or f64, on CUDA f32, updated in place;  gradient [n] read only
//   norm [1] f64         from gradient_norm; when it is not finite nothing is changed
//   segments             in order, disjoint; elements outside all of them keep their values
// Throws ShapeError or TypeError when something does not fit, ConfigError for an option out of
// range.
// Returns false when the update was skipped because the norm is not finite; to know that the host
// waits for CUDA.
// Source: Loshchilov & Hutter 2019; torch.optim.AdamW.
bool adamw(Context& ctx, TensorView parameter, ConstTensorView gradient, TensorView m, TensorView v,
           ConstTensorView norm, const AdamWOptions& options,
           std::span<const AdamWSegment> segments);

// The same update as decide() of kernels/update_state.h wants it, and the host does not wait.
//
//   state   [sizeof(UpdateState)] u8  an UpdateState, updated: its scale is the gradient's, and the
//                                     update is number steps_done + 1
//   losses  [any] f32 or f64          of the step, on CUDA f32: it is not made when one is not
//                                     finite
void adamw(Context& ctx, TensorView parameter, ConstTensorView gradient, TensorView m, TensorView v,
           ConstTensorView norm, ConstTensorView losses, const AdamWOptions& options,
           std::span<const AdamWSegment> segments, TensorView state);

namespace cuda {  // in adamw.cu; adamw.cc calls these after its checks
void gradient_norm(Context& ctx, ConstTensorView gradient, TensorView norm);
// state: empty for the update that options describe.
void adamw(Context& ctx, TensorView parameter, ConstTensorView gradient, TensorView m, TensorView v,
           ConstTensorView norm, ConstTensorView losses, const AdamWOptions& options,
           std::span<const AdamWSegment> segments, TensorView state);
}  // namespace cuda

}  // namespace scgraft
