// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "kernels/embedding_sum.h"
#include "runtime/context.h"

namespace scgraft {

// What front ends of backbones do with their tables, whose type may be another than that of the
// token rows gathered from them.

// Of what passes between layers: the products' type on a CUDA device, else that of the parameters.
DType activation_type(const Context& ctx, DType stored, DType product);

// The view in another type, in memory of the pass; itself when it has that type.
ConstTensorView in_type(Context& ctx, ConstTensorView view, DType type);

// embedding_sum_backward() into a table whose type may be another than that of dy.
void table_gradient(Context& ctx, ConstTensorView dy, const RowUses& uses, Dropout dropout,
                    const Packing& packing, TensorView dtable);

}  // namespace scgraft
