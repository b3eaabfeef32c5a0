// SPDX-License-Identifier: Apache-2.0
#include "model/scgpt/batch_encoder.h"

#include "kernels/add.h"
#include "kernels/join_columns.h"

namespace scgraft {

BatchEncoder::BatchEncoder(const ParameterMaker& make, int64_t labels, int64_t dim)
    : table_(&make.parameter("batch_encoder.embedding.weight", {labels, dim})),
      norm_(make.norm("batch_encoder.enc_norm", dim)) {}

void BatchEncoder::forward(Context& ctx, const TokenBatch& batch, std::span<const int32_t> labels,
                           bool save) {
  const int64_t known = table_->value.dim(0);
  if (static_cast<int64_t>(labels.size()) != batch.cells())
    throw DataError(cat("scgpt: this model needs the batch label of every cell, got ",
                        labels.size(), " of ", batch.cells()),
                    "E-BATCH-LABEL");
  for (const int32_t label : labels)
    if (label < 0 || label >= known)
      throw DataError(cat("scgpt: the batch label ", label, " is outside 0 to ", known - 1,
                          ", which the model was trained on"),
                      "E-BATCH-LABEL");
  cells_.assign(ctx, labels, known);
  std::vector<int32_t> of_tokens;
  const Packing packing = batch.packing();
  for (int64_t cell = 0; cell < batch.cells(); ++cell)
    of_tokens.insert(of_tokens.end(), static_cast<size_t>(packing.length(cell)),
                     labels[static_cast<size_t>(cell)]);
  tokens_.assign(ctx, of_tokens, known);
  const ConstTensorView table = std::as_const(table_->value).view();
  const TensorView rows = ctx.activations().take(table.shape(), table.dtype());
  saved_ = {};
  norm_.forward(ctx, table, {}, {}, nullptr, rows, save && trainable() ? &saved_ : nullptr);
  rows_ = rows;
}

ConstTensorView BatchEncoder::beside(Context& ctx, const RowIndex& index, const Packing& packing,
                                     ConstTensorView x) const {
  Arena::Scope scratch(ctx.scratch());
  const TensorView joined =
      ctx.activations().take({x.dim(0), x.dim(1) + rows_.dim(1)}, rows_.dtype());
  const TensorView rows = scratch.take({x.dim(0), rows_.dim(1)}, rows_.dtype());
  embedding_sum(ctx, rows_, index.index(), {}, {}, {}, packing, rows);
  join_columns(ctx, x, rows, joined);
  return joined;
}

ConstTensorView BatchEncoder::beside_tokens(Context& ctx, const TokenBatch& batch,
                                            ConstTensorView x) const {
  return beside(ctx, tokens_, batch.packing(), x);
}
ConstTensorView BatchEncoder::beside_cells(Context& ctx, const TokenBatch& batch,
                                           ConstTensorView x) const {
  return beside(ctx, cells_, batch.cell_rows(), x);
}

void BatchEncoder::backward(Context& ctx, const TokenBatch& batch, ConstTensorView djoined_tokens,
                            TensorView dtokens, ConstTensorView djoined_cells, TensorView dcells) {
  Arena::Scope scratch(ctx.scratch());
  const TensorView dtable = scratch.take(rows_.shape(), rows_.dtype());
  const TensorView part = scratch.take(rows_.shape(), rows_.dtype());
  set_zero(ctx, dtable);
  const auto split = [&](ConstTensorView djoined, TensorView dx, const RowIndex& index,
                         const Packing& packing) {
    if (djoined.empty()) return;
    Arena::Scope rows_scratch(ctx.scratch());
    const TensorView drows = ctx.scratch().take({djoined.dim(0), rows_.dim(1)}, rows_.dtype());
    split_columns(ctx, djoined, dx, drows);
    embedding_sum_backward(ctx, drows, index.uses(), {}, packing, part);
    add(ctx, dtable, part, dtable);
  };
  split(djoined_tokens, dtokens, tokens_, batch.packing());
  split(djoined_cells, dcells, cells_, batch.cell_rows());
  if (!trainable()) return;
  norm_.backward(ctx, saved_, dtable, {}, nullptr, dtable, {});
  if (table_->trainable())
    add(ctx, std::as_const(table_->grad).view(), dtable, table_->grad.view());
}

}  // namespace scgraft
