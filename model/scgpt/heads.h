// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <optional>
#include <vector>

#include "kernels/activation.h"
#include "model/batch.h"
#include "model/linear.h"
#include "model/norm.h"

namespace scgraft {

// Heads keep what their backward pass reads in ctx.activations(), as the encoder does.

// Class scores of a cell:  (Linear, ReLU, LN) x (n - 1), Linear; or another activation for ReLU.
struct Classifier {
  Activation between = Activation::relu;
  mutable std::vector<Linear> hidden;
  std::vector<LayerNorm> norms;
  mutable Linear out;

  int64_t classes() const { return out.out(); }
  std::vector<Parameter*> parameters() const;

  struct Saved {
    std::vector<ConstTensorView> inputs;     // of each hidden linear, then of `out`
    std::vector<ConstTensorView> activated;  // after each relu
    std::vector<LayerNorm::Saved> norms;
  };
  // cells [cells, dim] -> logits [cells, classes], overwritten. rows: one row per cell.
  void forward(Context& ctx, ConstTensorView cells, const Packing& rows, TensorView logits,
               Saved* saved) const;
  // dlogits [cells, classes] -> dcells [cells, dim], overwritten; empty: not wanted.
  void backward(Context& ctx, const Saved& saved, ConstTensorView dlogits, const Packing& rows,
                TensorView dcells);
};

// Expression of each token:  Linear, LeakyReLU, Linear, LeakyReLU, Linear to one number.
struct ExpressionDecoder {
  mutable Linear fc0, fc2, fc4;

  std::vector<Parameter*> parameters() const;
  struct Saved {
    ConstTensorView x, h0, h2;
  };
  // x [rows, dim] -> y [rows, 1], overwritten.
  void forward(Context& ctx, ConstTensorView x, const Packing& rows, TensorView y,
               Saved* saved) const;
  // dy [rows, 1] -> dx [rows, dim], overwritten; empty: not wanted.
  void backward(Context& ctx, const Saved& saved, ConstTensorView dy, const Packing& rows,
                TensorView dx);
};

// Expression of each gene from the cell embedding c and the gene embedding g ("inner product"):
//
//   q = sigmoid(gene2query(g))      y[t] = c[cell of t] . (W q[gene of t])
//
// q and W q are formed once per distinct gene. c is as wide as W is high: beside a batch label, the
// cell and the label. Where zeros are modelled, a second W gives the logit of a gene being
// expressed.
struct MvcDecoder {
  mutable Linear gene2query, w;
  mutable std::optional<Linear> w_zero;

  std::vector<Parameter*> parameters() const;
  struct Saved {
    ConstTensorView gene, query, key, zero_key, cells;
  };
  // gene [unique genes, dim], cells [cells, n] -> y [tokens], overwritten, and the logits zero
  // [tokens], overwritten; empty: not wanted.
  void forward(Context& ctx, ConstTensorView gene, ConstTensorView cells, const TokenBatch& batch,
               TensorView y, Saved* saved, TensorView zero = {}) const;
  // dy [tokens] and dzero [tokens], empty where that has no gradient -> dcells [cells, n] and dgene
  // [unique genes, dim], overwritten; empty: not wanted.
  void backward(Context& ctx, const Saved& saved, ConstTensorView dy, const TokenBatch& batch,
                TensorView dcells, TensorView dgene, ConstTensorView dzero = {});
};

}  // namespace scgraft
