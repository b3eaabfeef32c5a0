// SPDX-License-Identifier: Apache-2.0
#include "model/tables.h"

#include "kernels/cast.h"

namespace scgraft {

DType activation_type(const Context& ctx, DType stored, DType product) {
  return ctx.device().is_cuda() && stored == DType::f32 ? product : stored;
}

ConstTensorView in_type(Context& ctx, ConstTensorView view, DType type) {
  if (view.dtype() == type) return view;
  const TensorView other = ctx.activations().take(view.shape(), type);
  cast(ctx, view, other);
  return other;
}

void table_gradient(Context& ctx, ConstTensorView dy, const RowUses& uses, Dropout dropout,
                    const Packing& packing, TensorView dtable) {
  if (dy.dtype() == dtable.dtype())
    return embedding_sum_backward(ctx, dy, uses, dropout, packing, dtable);
  Arena::Scope scratch(ctx.scratch());
  const TensorView rounded = scratch.take(dtable.shape(), dy.dtype());
  embedding_sum_backward(ctx, dy, uses, dropout, packing, rounded);
  cast(ctx, rounded, dtable);
}

}  // namespace scgraft
