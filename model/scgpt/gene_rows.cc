// SPDX-License-Identifier: Apache-2.0
#include "model/scgpt/gene_rows.h"

#include "kernels/add.h"

namespace scgraft {

GeneRows::GeneRows(const ParameterMaker& make, int64_t vocab, int64_t dim)
    : embedding_(&make.parameter("encoder.embedding.weight", {vocab, dim})),
      norm_(make.norm("encoder.enc_norm", dim)) {}

ConstTensorView GeneRows::forward(Context& ctx, const TokenBatch& batch, bool save) {
  const int64_t vocab = embedding_->value.dim(0);
  const int64_t dim = embedding_->value.dim(1);
  const ConstTensorView genes = batch.unique_genes();
  for (const int32_t id : batch.host_unique_genes())
    require(id >= 0 && id < vocab, "scgpt: token id ", id, " is outside the vocabulary of ", vocab);
  const TensorView embedded = ctx.activations().take({genes.numel(), dim}, dtype());
  const TensorView rows = ctx.activations().take({genes.numel(), dim}, dtype());
  embedding_sum(ctx, std::as_const(embedding_->value).view(), genes, {}, {}, {}, batch.gene_rows(),
                embedded);
  saved_ = {};
  more_ = {};
  norm_.forward(ctx, embedded, {}, {}, nullptr, rows, save && trainable() ? &saved_ : nullptr);
  rows_ = rows;
  return rows;
}

void GeneRows::add_gradient(Context& ctx, ConstTensorView dgene) {
  if (!trainable()) return;
  if (!more_.empty()) return add(ctx, more_, dgene, more_);
  more_ = ctx.activations().take(dgene.shape(), dgene.dtype());
  copy(ctx, dgene, more_);
}

void GeneRows::backward(Context& ctx, const TokenBatch& batch, TensorView dgene) {
  if (!more_.empty()) add(ctx, dgene, more_, dgene);
  norm_.backward(ctx, saved_, dgene, {}, nullptr, dgene, {});
  if (embedding_->trainable()) add_rows(ctx, dgene, batch.unique_genes(), embedding_->grad.view());
}

}  // namespace scgraft
