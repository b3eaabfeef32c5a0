// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "runtime/context.h"
#include "runtime/tensor_view.h"

namespace scgraft {

enum class Activation {
  relu,              // max(x, 0)
  leaky_relu,        // x, or 0.01 x where x < 0
  sigmoid,           // 1 / (1 + exp(-x))
  tanh,              // (exp(x) - exp(-x)) / (exp(x) + exp(-x))
  gelu,              // x (1 + erf(x / sqrt(2))) / 2
  steep_leaky_relu,  // x, or 0.1 x where x < 0
};

// y = f(x) element by element; NaN stays NaN.
//
//   x, y  any equal shape, f32 or f64, on CUDA f32, bf16 or f16; y overwritten; y may be x
//
// Throws ShapeError or TypeError when something does not fit.
// Source: torch.nn.ReLU, LeakyReLU (slope 0.01; 0.1 as in scFoundation), Sigmoid, Tanh and GELU.
// GELU is the exact form, the one of BERT and of every backbone and adapter we know weights of; its
// approximation by tanh is another function.
void activation(Context& ctx, Activation kind, ConstTensorView x, TensorView y);

// dx = f'(x) dy, with f' taken from the output; 0 where relu is at 0. GELU is not monotonic, so its
// output does not say where it was: there f' is taken from x.
//
//   kept    y of activation(), for gelu its x
//   dy, dx  types as in activation(), all three of one shape; dx overwritten; dx may be dy
//
// Throws as activation() does.
void activation_backward(Context& ctx, Activation kind, ConstTensorView kept, ConstTensorView dy,
                         TensorView dx);

namespace cuda {  // in activation.cu; activation.cc calls these after its checks
void activation(Context& ctx, Activation kind, ConstTensorView x, TensorView y);
void activation_backward(Context& ctx, Activation kind, ConstTensorView kept, ConstTensorView dy,
                         TensorView dx);
}  // namespace cuda

}  // namespace scgraft
