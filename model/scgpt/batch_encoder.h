// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <span>

#include "model/batch.h"
#include "model/parameter_source.h"
#include "model/row_index.h"

namespace scgraft {

// Rows of batch labels (of experiments, not of cells computed together):  e = LN(B[label]). Heads
// read them beside the token or the cell:  [x[t], e[label of t's cell]].
class BatchEncoder {
 public:
  BatchEncoder(const ParameterMaker& make, int64_t labels, int64_t dim);

  bool trainable() const { return table_->trainable() || norm_.trainable(); }
  LayerNorm& norm() { return norm_; }

  // The labels [cells] of a batch. Throws DataError (E-BATCH-LABEL) when there are none, another
  // number of them, or one outside the table.
  void forward(Context& ctx, const TokenBatch& batch, std::span<const int32_t> labels, bool save);
  // x [tokens, n] or [cells, n] -> [tokens or cells, n + dim], in ctx.activations(); x in the type
  // of the table.
  ConstTensorView beside_tokens(Context& ctx, const TokenBatch& batch, ConstTensorView x) const;
  ConstTensorView beside_cells(Context& ctx, const TokenBatch& batch, ConstTensorView x) const;
  // The way back, of the whole batch at once: gradients by [x, e], each empty where there is none.
  // dtokens and dcells, both [.., n], are overwritten.
  void backward(Context& ctx, const TokenBatch& batch, ConstTensorView djoined_tokens,
                TensorView dtokens, ConstTensorView djoined_cells, TensorView dcells);

 private:
  ConstTensorView beside(Context& ctx, const RowIndex& index, const Packing& packing,
                         ConstTensorView x) const;

  Parameter* table_;
  LayerNorm norm_;
  LayerNorm::Saved saved_;
  ConstTensorView rows_;     // of the whole table
  RowIndex tokens_, cells_;  // of their labels
};

}  // namespace scgraft
