// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "runtime/context.h"
#include "runtime/tensor_view.h"

namespace scgraft {

// y = a + b, element by element. Equal shapes, f32 or f64; y may be a or b.
void add(Context& ctx, ConstTensorView a, ConstTensorView b, TensorView y);

}  // namespace scgraft
