// SPDX-License-Identifier: Apache-2.0
#include "model/scgpt/heads.h"

#include "kernels/activation.h"
#include "kernels/cell_dot.h"

namespace scgraft {
namespace {

void append(std::vector<Parameter*>& to, const Linear& linear) {
  to.push_back(linear.weight());
  if (linear.bias() != nullptr) to.push_back(linear.bias());
}

}  // namespace

std::vector<Parameter*> Classifier::parameters() const {
  std::vector<Parameter*> all;
  for (size_t i = 0; i < hidden.size(); ++i) {
    append(all, hidden[i]);
    all.push_back(norms[i].gamma);
    all.push_back(norms[i].beta);
  }
  append(all, out);
  return all;
}

void Classifier::forward(Context& ctx, ConstTensorView cells, const Packing& rows,
                         TensorView logits, Saved* saved) const {
  Arena& keep = saved != nullptr ? ctx.activations() : ctx.scratch();
  Arena::Scope scratch(ctx.scratch());
  ConstTensorView x = cells;
  if (saved != nullptr) *saved = Saved{};
  for (size_t i = 0; i < hidden.size(); ++i) {
    const TensorView a = keep.take({cells.dim(0), hidden[i].out()}, cells.dtype());
    hidden[i].forward(ctx, x, rows, false, a);
    activation(ctx, Activation::relu, a, a);
    const TensorView y = keep.take({cells.dim(0), hidden[i].out()}, cells.dtype());
    LayerNorm::Saved norm;
    norms[i].forward(ctx, a, {}, {}, nullptr, y, saved != nullptr ? &norm : nullptr);
    if (saved != nullptr) {
      saved->inputs.push_back(x);
      saved->activated.push_back(a);
      saved->norms.push_back(norm);
    }
    x = y;
  }
  if (saved != nullptr) saved->inputs.push_back(x);
  out.forward(ctx, x, rows, false, logits);
}

void Classifier::backward(Context& ctx, const Saved& saved, ConstTensorView dlogits,
                          const Packing& rows, TensorView dcells) {
  Arena::Scope scratch(ctx.scratch());
  ConstTensorView dy = dlogits;
  for (size_t layer = hidden.size() + 1; layer-- > 0;) {
    Linear& linear = layer == hidden.size() ? out : hidden[layer];
    if (layer < hidden.size()) {
      const TensorView da = scratch.take(dy.shape(), dy.dtype());
      norms[layer].backward(ctx, saved.norms[layer], dy, {}, &rows, da, {});
      activation_backward(ctx, Activation::relu, saved.activated[layer], da, da);
      dy = da;
    }
    TensorView dx = dcells;
    if (layer > 0) dx = scratch.take({dlogits.dim(0), linear.in()}, dlogits.dtype());
    linear.backward(ctx, saved.inputs[layer], dy, rows, false, false, dx);
    dy = dx;
  }
}

std::vector<Parameter*> ExpressionDecoder::parameters() const {
  std::vector<Parameter*> all;
  append(all, fc0);
  append(all, fc2);
  append(all, fc4);
  return all;
}

void ExpressionDecoder::forward(Context& ctx, ConstTensorView x, const Packing& rows, TensorView y,
                                Saved* saved) const {
  Arena& keep = saved != nullptr ? ctx.activations() : ctx.scratch();
  Arena::Scope scratch(ctx.scratch());
  const TensorView h0 = keep.take({x.dim(0), fc0.out()}, x.dtype());
  const TensorView h2 = keep.take({x.dim(0), fc2.out()}, x.dtype());
  fc0.forward(ctx, x, rows, false, h0);
  activation(ctx, Activation::leaky_relu, h0, h0);
  fc2.forward(ctx, h0, rows, false, h2);
  activation(ctx, Activation::leaky_relu, h2, h2);
  fc4.forward(ctx, h2, rows, false, y);
  if (saved != nullptr) *saved = {x, h0, h2};
}

void ExpressionDecoder::backward(Context& ctx, const Saved& saved, ConstTensorView dy,
                                 const Packing& rows, TensorView dx) {
  Arena::Scope scratch(ctx.scratch());
  const TensorView d2 = scratch.take(saved.h2.shape(), saved.h2.dtype());
  fc4.backward(ctx, saved.h2, dy, rows, false, false, d2);
  activation_backward(ctx, Activation::leaky_relu, saved.h2, d2, d2);
  const TensorView d0 = scratch.take(saved.h0.shape(), saved.h0.dtype());
  fc2.backward(ctx, saved.h0, d2, rows, false, false, d0);
  activation_backward(ctx, Activation::leaky_relu, saved.h0, d0, d0);
  fc0.backward(ctx, saved.x, d0, rows, false, false, dx);
}

std::vector<Parameter*> MvcDecoder::parameters() const {
  std::vector<Parameter*> all;
  append(all, gene2query);
  append(all, w);
  return all;
}

void MvcDecoder::forward(Context& ctx, ConstTensorView gene, ConstTensorView cells,
                         const TokenBatch& batch, TensorView y, Saved* saved) const {
  Arena& keep = saved != nullptr ? ctx.activations() : ctx.scratch();
  Arena::Scope scratch(ctx.scratch());
  const Packing rows = batch.gene_rows();
  const TensorView query = keep.take({gene.dim(0), gene2query.out()}, gene.dtype());
  gene2query.forward(ctx, gene, rows, false, query);
  activation(ctx, Activation::sigmoid, query, query);
  const TensorView key = keep.take({gene.dim(0), w.out()}, gene.dtype());
  w.forward(ctx, query, rows, false, key);
  const TensorView token_key = scratch.take({batch.tokens(), w.out()}, gene.dtype());
  embedding_sum(ctx, key, batch.gene_index(), {}, {}, {}, batch.packing(), token_key);
  cell_dot(ctx, token_key, cells, batch.packing(), y);
  if (saved != nullptr) *saved = {gene, query, key, cells};
}

void MvcDecoder::backward(Context& ctx, const Saved& saved, ConstTensorView dy,
                          const TokenBatch& batch, TensorView dcells, TensorView dgene) {
  Arena::Scope scratch(ctx.scratch());
  const Packing packing = batch.packing();
  const Packing rows = batch.gene_rows();
  const bool want_key = !dgene.empty() || w.trainable() || gene2query.trainable();
  const TensorView token_key = scratch.take({batch.tokens(), w.out()}, dy.dtype());
  embedding_sum(ctx, saved.key, batch.gene_index(), {}, {}, {}, packing, token_key);
  TensorView dtoken;
  if (want_key) dtoken = scratch.take({batch.tokens(), w.out()}, dy.dtype());
  cell_dot_backward(ctx, token_key, saved.cells, dy, packing, dtoken, dcells);
  if (!want_key) return;
  const TensorView dkey = scratch.take(saved.key.shape(), dy.dtype());
  embedding_sum_backward(ctx, dtoken, batch.gene_uses(), {}, packing, dkey);
  const TensorView dquery = scratch.take(saved.query.shape(), dy.dtype());
  w.backward(ctx, saved.query, dkey, rows, false, false, dquery);
  activation_backward(ctx, Activation::sigmoid, saved.query, dquery, dquery);
  gene2query.backward(ctx, saved.gene, dquery, rows, false, false, dgene);
}

}  // namespace scgraft
