// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "runtime/context.h"
#include "runtime/tensor_view.h"

namespace scgraft {

enum class Activation {
  relu,        // max(x, 0)
  leaky_relu,  // x, or 0.01 x where x < 0
  sigmoid,     // 1 / (1 + exp(-x))
};

// y = f(x) element by element; NaN stays NaN.
//
//   x, y  any equal shape, f32 or f64, on CUDA f32, bf16 or f16; y overwritten; y may be x
//
// Throws ShapeError or TypeError when something does not fit.
// Source: torch.nn.ReLU, LeakyReLU (slope 0.01) and Sigmoid.
void activation(Context& ctx, Activation kind, ConstTensorView x, TensorView y);

// dx = f'(x) dy, with f' taken from the output y; 0 where relu is at 0.
//
//   y, dy, dx  any equal shape, types as in activation(); dx overwritten; dx may be dy
//
// Throws as activation() does.
void activation_backward(Context& ctx, Activation kind, ConstTensorView y, ConstTensorView dy,
                         TensorView dx);

namespace cuda {  // in activation.cu; activation.cc calls these after its checks
void activation(Context& ctx, Activation kind, ConstTensorView x, TensorView y);
void activation_backward(Context& ctx, Activation kind, ConstTensorView y, ConstTensorView dy,
                         TensorView dx);
}  // namespace cuda

}  // namespace scgraft
