// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "runtime/context.h"
#include "runtime/tensor_view.h"

namespace scgraft {

// y = a + b, element by element.
//
//   a, b, y  any equal shape, f32 or f64; y overwritten; y may be a or b
//
// Throws ShapeError or TypeError when something does not fit.
void add(Context& ctx, ConstTensorView a, ConstTensorView b, TensorView y);

}  // namespace scgraft
