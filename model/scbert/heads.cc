// SPDX-License-Identifier: Apache-2.0
#include "model/scbert/heads.h"

#include "kernels/activation.h"
#include "runtime/error.h"

namespace scgraft {

void RowClassifier::forward(Context& ctx, ConstTensorView x, const Packing& tokens,
                            const Packing& cells, TensorView logits, Saved* saved) const {
  const int64_t n = cells.tokens();
  for (int64_t cell = 0; cell < tokens.cells(); ++cell)
    require(tokens.length(cell) == fc1.in(), "the classifier reads ", fc1.in(),
            " rows of every cell, cell ", cell, " of the batch has ", tokens.length(cell));
  Arena& keep = saved != nullptr ? ctx.activations() : ctx.scratch();
  Arena::Scope scratch(ctx.scratch());
  const auto layer = [&](Linear& linear, ConstTensorView from, const Packing& rows) {
    const TensorView to = keep.take({from.dim(0), linear.out()}, x.dtype());
    linear.forward(ctx, from, rows, false, to);
    activation(ctx, Activation::relu, to, to);
    return to;
  };
  const TensorView z = layer(row, x, tokens).reshape({n, fc1.in()});
  const TensorView h1 = layer(fc1, z, cells);
  const TensorView h2 = layer(fc2, h1, cells);
  fc3.forward(ctx, h2, cells, false, logits);
  if (saved != nullptr) *saved = {x, z, h1, h2};
}

void RowClassifier::backward(Context& ctx, const Saved& saved, ConstTensorView dlogits,
                             const Packing& tokens, const Packing& cells, TensorView dx) {
  Arena::Scope scratch(ctx.scratch());
  const auto below = [&](Linear& linear, ConstTensorView in, ConstTensorView dy,
                         ConstTensorView kept) {
    const TensorView d = ctx.scratch().take(kept.shape(), kept.dtype());
    linear.backward(ctx, in, dy, cells, false, false, d);
    activation_backward(ctx, Activation::relu, kept, d, d);
    return d;
  };
  const TensorView dh2 = below(fc3, saved.h2, dlogits, saved.h2);
  const TensorView dh1 = below(fc2, saved.h1, dh2, saved.h1);
  const TensorView dz = below(fc1, saved.z, dh1, saved.z);
  row.backward(ctx, saved.x, dz.reshape({saved.x.dim(0), 1}), tokens, false, false, dx);
}

}  // namespace scgraft
