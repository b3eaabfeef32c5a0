// SPDX-License-Identifier: Apache-2.0
#include "model/scgpt/heads.h"

#include "kernels/add.h"
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
    activation(ctx, between, a, a);
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
      activation_backward(ctx, between, saved.activated[layer], da, da);
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
  if (w_zero) append(all, *w_zero);
  return all;
}

namespace {

// y[t] = c[cell of t] . (W q[gene of t]); -> W q of the distinct genes, in `keep`.
ConstTensorView inner_products(Context& ctx, Linear& w, ConstTensorView query,
                               ConstTensorView cells, const TokenBatch& batch, Arena& keep,
                               TensorView y) {
  const TensorView key = keep.take({query.dim(0), w.out()}, query.dtype());
  w.forward(ctx, query, batch.gene_rows(), false, key);
  Arena::Scope tokens(ctx.scratch());
  const TensorView token_key = ctx.scratch().take({batch.tokens(), w.out()}, query.dtype());
  embedding_sum(ctx, key, batch.gene_index(), {}, {}, {}, batch.packing(), token_key);
  cell_dot(ctx, token_key, cells, batch.packing(), y);
  return key;
}

// dcells overwritten; dquery overwritten, or added to; each empty when not wanted.
void inner_products_backward(Context& ctx, Linear& w, ConstTensorView query, ConstTensorView key,
                             ConstTensorView cells, ConstTensorView dy, const TokenBatch& batch,
                             TensorView dcells, bool accumulate, TensorView dquery) {
  Arena::Scope scratch(ctx.scratch());
  const Packing packing = batch.packing();
  const bool want_key = !dquery.empty() || w.trainable();
  const TensorView token_key = scratch.take({batch.tokens(), w.out()}, dy.dtype());
  embedding_sum(ctx, key, batch.gene_index(), {}, {}, {}, packing, token_key);
  TensorView dtoken;
  if (want_key) dtoken = scratch.take({batch.tokens(), w.out()}, dy.dtype());
  cell_dot_backward(ctx, token_key, cells, dy, packing, dtoken, dcells);
  if (!want_key) return;
  const TensorView dkey = scratch.take(key.shape(), dy.dtype());
  embedding_sum_backward(ctx, dtoken, batch.gene_uses(), {}, packing, dkey);
  w.backward(ctx, query, dkey, batch.gene_rows(), false, accumulate, dquery);
}

}  // namespace

void MvcDecoder::forward(Context& ctx, ConstTensorView gene, ConstTensorView cells,
                         const TokenBatch& batch, TensorView y, Saved* saved,
                         TensorView zero) const {
  Arena& keep = saved != nullptr ? ctx.activations() : ctx.scratch();
  Arena::Scope scratch(ctx.scratch());
  const TensorView query = keep.take({gene.dim(0), gene2query.out()}, gene.dtype());
  gene2query.forward(ctx, gene, batch.gene_rows(), false, query);
  activation(ctx, Activation::sigmoid, query, query);
  const ConstTensorView key = inner_products(ctx, w, query, cells, batch, keep, y);
  ConstTensorView zero_key;
  if (w_zero && !zero.empty())
    zero_key = inner_products(ctx, *w_zero, query, cells, batch, keep, zero);
  if (saved != nullptr) *saved = {gene, query, key, zero_key, cells};
}

void MvcDecoder::backward(Context& ctx, const Saved& saved, ConstTensorView dy,
                          const TokenBatch& batch, TensorView dcells, TensorView dgene,
                          ConstTensorView dzero) {
  Arena::Scope scratch(ctx.scratch());
  const bool want_query = !dgene.empty() || gene2query.trainable();
  TensorView dquery;
  if (want_query) dquery = scratch.take(saved.query.shape(), saved.query.dtype());
  inner_products_backward(ctx, w, saved.query, saved.key, saved.cells, dy, batch, dcells, false,
                          dquery);
  if (!dzero.empty()) {
    TensorView more;
    if (!dcells.empty()) more = scratch.take(dcells.shape(), dcells.dtype());
    inner_products_backward(ctx, *w_zero, saved.query, saved.zero_key, saved.cells, dzero, batch,
                            more, true, dquery);
    if (!dcells.empty()) add(ctx, dcells, more, dcells);
  }
  if (!want_query) return;
  activation_backward(ctx, Activation::sigmoid, saved.query, dquery, dquery);
  gene2query.backward(ctx, saved.gene, dquery, batch.gene_rows(), false, false, dgene);
}

}  // namespace scgraft
