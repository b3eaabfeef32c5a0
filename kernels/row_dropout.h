// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "kernels/dropout.h"
#include "kernels/packing.h"
#include "runtime/context.h"
#include "runtime/tensor_view.h"

namespace scgraft {

// y = drop(x), the hidden dropout of kernels/dropout.h. It is its own gradient: of dy it makes dx.
//
//   x, y  [rows, dim]  f32 or f64, on CUDA f32, bf16 or f16; y overwritten; y may be x
//
// packing: coordinates of the rows; may be null when nothing is dropped (y = x then).
// Throws ShapeError or TypeError when something does not fit, ConfigError when p is not in [0, 1).
// Source: torch.nn.Dropout.
void row_dropout(Context& ctx, ConstTensorView x, Dropout dropout, const Packing* packing,
                 TensorView y);

namespace cuda {  // in row_dropout.cu; row_dropout.cc calls this after its checks
void row_dropout(Context& ctx, ConstTensorView x, Dropout dropout, const Packing* packing,
                 TensorView y);
}  // namespace cuda

}  // namespace scgraft
