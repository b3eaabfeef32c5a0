// SPDX-License-Identifier: Apache-2.0
#include "model/scgpt/query_mvc.h"

#include "kernels/activation.h"
#include "kernels/add.h"
#include "kernels/join_columns.h"

namespace scgraft {
namespace {

// Every element a row of its own, as one cell.
class Elements {
 public:
  Elements(Context& ctx, int64_t n) : list_(n), rows_(ctx, list_.packing()) {}
  const Packing& packing() const { return rows_.packing(); }

 private:
  RowList list_;
  DevicePacking rows_;
};

}  // namespace

void Prelu::forward(Context& ctx, ConstTensorView x, TensorView y, Saved& saved) const {
  const Shape column{x.numel(), 1};
  const TensorView positive = ctx.activations().take(x.shape(), x.dtype());
  const TensorView negative = ctx.activations().take(x.shape(), x.dtype());
  activation(ctx, Activation::relu, x, positive);
  add(ctx, x, positive, negative, -1);
  const Elements elements(ctx, x.numel());
  PackedWeight weight;
  weight.pack(ctx, std::as_const(slope->value).view().reshape({1, 1}), PackedFor::forward,
              x.dtype());
  linear(ctx, negative.reshape(column), weight, {}, {}, &elements.packing(), y.reshape(column));
  add(ctx, y, positive, y);
  saved = {positive, negative};
  // The packing's numbers go with it.
  ctx.synchronize();
}

void Prelu::backward(Context& ctx, const Saved& saved, ConstTensorView dy, TensorView dx) {
  const Shape column{dy.numel(), 1};
  const Elements elements(ctx, dy.numel());
  Arena::Scope scratch(ctx.scratch());
  const TensorView dnegative = scratch.take(dy.shape(), dy.dtype());
  PackedWeight weight;
  weight.pack(ctx, std::as_const(slope->value).view().reshape({1, 1}), PackedFor::backward_input,
              dy.dtype());
  if (slope->trainable())
    linear_backward_weight(ctx, saved.negative.reshape(column), dy.reshape(column),
                           elements.packing(), slope->grad.view().reshape({1, 1}), {});
  linear_backward_input(ctx, dy.reshape(column), weight, {}, &elements.packing(), false,
                        dnegative.reshape(column));
  // dx = dy where x > 0, else slope dy.
  add(ctx, dy, dnegative, dx, -1);
  activation_backward(ctx, Activation::relu, saved.positive, dx, dx);
  add(ctx, dx, dnegative, dx);
  ctx.synchronize();
}

void QueryMvc::forward(Context& ctx, ConstTensorView gene, ConstTensorView cells,
                       const TokenBatch& batch, TensorView y, Saved& saved) {
  Arena& keep = ctx.activations();
  const DType type = gene.dtype();
  const Packing packing = batch.packing();
  const TensorView query = keep.take({gene.dim(0), gene2query.out()}, type);
  gene2query.forward(ctx, gene, batch.gene_rows(), false, query);
  activation(ctx, Activation::sigmoid, query, query);
  std::vector<int32_t> cell_of;
  for (int64_t cell = 0; cell < batch.cells(); ++cell)
    cell_of.insert(cell_of.end(), static_cast<size_t>(packing.length(cell)),
                   static_cast<int32_t>(cell));
  cells_.assign(ctx, cell_of, batch.cells());
  const TensorView in = keep.take({batch.tokens(), fc1.in()}, type);
  if (concat) {
    Arena::Scope scratch(ctx.scratch());
    const TensorView c = scratch.take({batch.tokens(), cells.dim(1)}, type);
    const TensorView q = scratch.take({batch.tokens(), query.dim(1)}, type);
    embedding_sum(ctx, cells, cells_.index(), {}, {}, {}, packing, c);
    embedding_sum(ctx, query, batch.gene_index(), {}, {}, {}, packing, q);
    join_columns(ctx, c, q, in);
  } else {
    embedding_sum(ctx, cells, cells_.index(), query, batch.gene_index(), {}, packing, in);
  }
  const TensorView hidden = keep.take({batch.tokens(), fc1.out()}, type);
  const TensorView activated = keep.take(hidden.shape(), type);
  fc1.forward(ctx, in, packing, false, hidden);
  between.forward(ctx, hidden, activated, saved.between);
  fc2.forward(ctx, activated, packing, false, y);
  saved.gene = gene;
  saved.query = query;
  saved.in = in;
  saved.activated = activated;
}

void QueryMvc::backward(Context& ctx, const Saved& saved, ConstTensorView dy,
                        const TokenBatch& batch, TensorView dcells, TensorView dgene) {
  Arena::Scope scratch(ctx.scratch());
  const Packing packing = batch.packing();
  const TensorView dactivated = scratch.take(saved.activated.shape(), dy.dtype());
  const TensorView dhidden = scratch.take(saved.activated.shape(), dy.dtype());
  const TensorView din = scratch.take(saved.in.shape(), dy.dtype());
  const TensorView dquery = scratch.take(saved.query.shape(), dy.dtype());
  fc2.backward(ctx, saved.activated, dy, packing, false, false, dactivated);
  between.backward(ctx, saved.between, dactivated, dhidden);
  fc1.backward(ctx, saved.in, dhidden, packing, false, false, din);
  TensorView dc = din, dq = din;
  if (concat) {
    dc = scratch.take({batch.tokens(), dcells.dim(1)}, dy.dtype());
    dq = scratch.take({batch.tokens(), saved.query.dim(1)}, dy.dtype());
    split_columns(ctx, din, dc, dq);
  }
  embedding_sum_backward(ctx, dc, cells_.uses(), {}, packing, dcells);
  embedding_sum_backward(ctx, dq, batch.gene_uses(), {}, packing, dquery);
  activation_backward(ctx, Activation::sigmoid, saved.query, dquery, dquery);
  gene2query.backward(ctx, saved.gene, dquery, batch.gene_rows(), false, false, dgene);
}

}  // namespace scgraft
