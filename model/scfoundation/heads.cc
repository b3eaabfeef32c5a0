// SPDX-License-Identifier: Apache-2.0
#include "model/scfoundation/heads.h"

#include "kernels/activation.h"

namespace scgraft {

void PartsClassifier::forward(Context& ctx, ConstTensorView x, const Packing& cells,
                              TensorView logits, Saved* saved) const {
  Arena& keep = saved != nullptr ? ctx.activations() : ctx.scratch();
  Arena::Scope scratch(ctx.scratch());
  const TensorView h = keep.take({x.dim(0), hidden.out()}, x.dtype());
  hidden.forward(ctx, x, cells, false, h);
  activation(ctx, Activation::relu, h, h);
  out.forward(ctx, h, cells, false, logits);
  if (saved != nullptr) *saved = {x, h};
}

void PartsClassifier::backward(Context& ctx, const Saved& saved, ConstTensorView dlogits,
                               const Packing& cells, TensorView dx) {
  Arena::Scope scratch(ctx.scratch());
  const TensorView dh = ctx.scratch().take(saved.h.shape(), saved.h.dtype());
  out.backward(ctx, saved.h, dlogits, cells, false, false, dh);
  activation_backward(ctx, Activation::relu, saved.h, dh, dh);
  hidden.backward(ctx, saved.x, dh, cells, false, false, dx);
}

}  // namespace scgraft
