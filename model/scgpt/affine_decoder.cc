// SPDX-License-Identifier: Apache-2.0
#include "model/scgpt/affine_decoder.h"

#include "kernels/add.h"

namespace scgraft {

void AffineDecoder::forward(Context& ctx, ConstTensorView x, ConstTensorView values,
                            const Packing& rows, TensorView y, Saved& saved) {
  const TensorView a = ctx.activations().take(y.shape(), y.dtype());
  const TensorView b = ctx.activations().take(y.shape(), y.dtype());
  coefficient.forward(ctx, x, rows, a, &saved.coefficient);
  bias.forward(ctx, x, rows, b, &saved.bias);
  scale_.assign(ctx, x.dim(0));
  scale_.apply(ctx, a, values, y);
  add(ctx, y, b, y);
  saved.a = a;
  saved.b = b;
}

void AffineDecoder::backward(Context& ctx, const Saved& saved, ConstTensorView dy,
                             ConstTensorView values, const Packing& rows, TensorView dx) {
  Arena::Scope scratch(ctx.scratch());
  const TensorView da = scratch.take(dy.shape(), dy.dtype());
  const TensorView more = scratch.take(dx.shape(), dx.dtype());
  scale_.apply(ctx, dy, values, da);
  coefficient.backward(ctx, saved.coefficient, da, rows, dx);
  bias.backward(ctx, saved.bias, dy, rows, more);
  add(ctx, dx, more, dx);
}

}  // namespace scgraft
