// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "model/batch.h"
#include "model/parameter_source.h"

namespace scgraft {

// Rows of genes, once per distinct gene of a batch:  g = LN(E[gene]).
class GeneRows {
 public:
  GeneRows(const ParameterMaker& make, int64_t vocab, int64_t dim);

  DType dtype() const { return embedding_->value.dtype(); }
  bool trainable() const { return embedding_->trainable() || norm_.trainable(); }
  LayerNorm& norm() { return norm_; }

  // -> [unique genes, dim], in ctx.activations(). Throws ShapeError for an id outside the table.
  ConstTensorView forward(Context& ctx, const TokenBatch& batch, bool save);
  // What the last forward() gave; lives as long as that pass's activations.
  ConstTensorView rows() const { return rows_; }
  // Adds dgene [unique genes, dim] to what backward() is given; call before it.
  void add_gradient(Context& ctx, ConstTensorView dgene);
  // dgene [unique genes, dim] is used up.
  void backward(Context& ctx, const TokenBatch& batch, TensorView dgene);

 private:
  Parameter* embedding_;
  LayerNorm norm_;
  ConstTensorView rows_;
  LayerNorm::Saved saved_;
  TensorView more_;  // from add_gradient()
};

}  // namespace scgraft
