// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "kernels/dropout.h"
#include "kernels/packing.h"
#include "runtime/context.h"
#include "runtime/tensor_view.h"

namespace scgraft {

// y = drop(max(x, 0)), remembering one bit per element.
//
//   x, y  [rows, dim]                f32 or f64, on CUDA f32, bf16 or f16; y may be x
//   bits  [rows, (dim + 7) / 8]      u8, bit f % 8 of byte f / 8 is 1 where y passes a gradient
//                                    (x > 0 and kept); overwritten; empty when no backward follows
// packing: coordinates of the rows; may be null when nothing is dropped.
// Throws ShapeError or TypeError when something does not fit, ConfigError when p is not in [0, 1).
// Source: torch.nn.ReLU followed by torch.nn.Dropout.
void relu_dropout(Context& ctx, ConstTensorView x, Dropout dropout, const Packing* packing,
                  TensorView y, TensorView bits);

// dx = dy / (1 - p) where the bit is 1, else 0, with p as dropout rounds it (kernels/dropout.h).
//
//   dy, dx  [rows, dim]  f32 or f64, on CUDA f32, bf16 or f16; dx overwritten; dx may be dy
//   bits    as the forward pass left them
//
// Throws as relu_dropout() does.
void relu_dropout_backward(Context& ctx, ConstTensorView dy, ConstTensorView bits, Dropout dropout,
                           TensorView dx);

namespace cuda {  // in relu_dropout.cu; relu_dropout.cc calls these after its checks
void relu_dropout(Context& ctx, ConstTensorView x, Dropout dropout, const Packing* packing,
                  TensorView y, TensorView bits);
void relu_dropout_backward(Context& ctx, ConstTensorView dy, ConstTensorView bits, Dropout dropout,
                           TensorView dx);
}  // namespace cuda

}  // namespace scgraft
