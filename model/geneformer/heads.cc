// SPDX-License-Identifier: Apache-2.0
#include "model/geneformer/heads.h"

#include "kernels/activation.h"

namespace scgraft {

void WordPrediction::forward(Context& ctx, ConstTensorView x, const Packing& rows, TensorView h,
                             Saved* saved) const {
  Arena& keep = saved != nullptr ? ctx.activations() : ctx.scratch();
  Arena::Scope scratch(ctx.scratch());
  const TensorView a = keep.take({x.dim(0), dense.out()}, x.dtype());
  dense.forward(ctx, x, rows, false, a);
  activation(ctx, Activation::relu, a, a);
  if (saved != nullptr) *saved = {.x = x, .activated = a, .norm = {}};
  norm.forward(ctx, a, {}, {}, nullptr, h, saved != nullptr ? &saved->norm : nullptr);
}

void WordPrediction::backward(Context& ctx, const Saved& saved, TensorView dh, const Packing& rows,
                              TensorView dx) {
  norm.backward(ctx, saved.norm, dh, {}, &rows, dh, {});
  activation_backward(ctx, Activation::relu, saved.activated, dh, dh);
  dense.backward(ctx, saved.x, dh, rows, false, false, dx);
}

void Pooler::forward(Context& ctx, ConstTensorView x, const Packing& rows, TensorView y,
                     Saved* saved) const {
  dense.forward(ctx, x, rows, false, y);
  activation(ctx, Activation::tanh, y, y);
  if (saved != nullptr) *saved = {.x = x, .y = y};
}

void Pooler::backward(Context& ctx, const Saved& saved, TensorView dy, const Packing& rows,
                      TensorView dx) {
  activation_backward(ctx, Activation::tanh, saved.y, dy, dy);
  dense.backward(ctx, saved.x, dy, rows, false, false, dx);
}

}  // namespace scgraft
