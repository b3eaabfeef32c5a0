// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "runtime/context.h"
#include "runtime/tensor_view.h"

namespace scgraft {

// y = x in the type of y, rounded to nearest even. What f16 cannot hold becomes infinite.
//
//   x, y  any equal shape, f32, bf16, f16 or f64, on CUDA not f64; y overwritten
//
// Throws ShapeError or TypeError when something does not fit.
void cast(Context& ctx, ConstTensorView x, TensorView y);

namespace cuda {  // in cast.cu; cast.cc calls this after its checks
void cast(Context& ctx, ConstTensorView x, TensorView y);
}  // namespace cuda

}  // namespace scgraft
