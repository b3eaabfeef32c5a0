// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "model/batch.h"
#include "model/linear.h"
#include "model/row_index.h"

namespace scgraft {

// PReLU with one slope for all features:  y = x, or slope x where x < 0.
// Composed of ReLU, sums and a product with the 1 x 1 matrix of the slope: no published model has
// it, and nothing of its speed is missed.
struct Prelu {
  Parameter* slope = nullptr;  // [1]

  struct Saved {
    ConstTensorView positive, negative;  // max(x, 0) and min(x, 0)
  };
  // x, y [rows, dim], y overwritten.
  void forward(Context& ctx, ConstTensorView x, TensorView y, Saved& saved) const;
  // dx [rows, dim] overwritten; accumulates into the slope when it is trainable.
  void backward(Context& ctx, const Saved& saved, ConstTensorView dy, TensorView dx);
};

// Expression of each gene from the cell embedding c and the gene embedding g, by a small network
// over both ("concat query", "sum query"):
//
//   q = sigmoid(gene2query(g))
//   y[t] = fc2(PReLU(fc1([c[cell of t], q[gene of t]])))     concat
//   y[t] = fc2(PReLU(fc1(c[cell of t] + q[gene of t])))      sum
struct QueryMvc {
  bool concat = false;
  mutable Linear gene2query, fc1, fc2;
  Prelu between;

  struct Saved {
    ConstTensorView gene, query, in, activated;
    Prelu::Saved between;
  };
  // gene [unique genes, dim], cells [cells, dim] -> y [tokens, 1], overwritten.
  void forward(Context& ctx, ConstTensorView gene, ConstTensorView cells, const TokenBatch& batch,
               TensorView y, Saved& saved);
  // dy [tokens, 1] -> dcells [cells, dim] and dgene [unique genes, dim], overwritten.
  void backward(Context& ctx, const Saved& saved, ConstTensorView dy, const TokenBatch& batch,
                TensorView dcells, TensorView dgene);

 private:
  RowIndex cells_;  // of the tokens
};

}  // namespace scgraft
