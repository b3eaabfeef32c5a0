// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "model/linear.h"
#include "model/norm.h"

namespace scgraft {

// Heads keep what their backward pass reads in ctx.activations(), as the encoder does.

// The row from which words are predicted (masked language model):
//
//   h = LN(relu(dense x))      logits = decoder h,  the decoder's weight being the word embedding
//
// Source: BertPredictionHeadTransform with the activation of the configuration.
struct WordPrediction {
  mutable Linear dense;
  LayerNorm norm;
  mutable Linear decoder;

  struct Saved {
    ConstTensorView x, activated;
    LayerNorm::Saved norm;
  };
  // x [rows, dim] -> h [rows, dim], overwritten. saved null: inference.
  void forward(Context& ctx, ConstTensorView x, const Packing& rows, TensorView h,
               Saved* saved) const;
  // dh is consumed -> dx [rows, dim], overwritten; empty: not wanted.
  void backward(Context& ctx, const Saved& saved, TensorView dh, const Packing& rows,
                TensorView dx);
};

// The pooled first row of a cell: y = tanh(dense x). Source: BertPooler.
struct Pooler {
  mutable Linear dense;

  struct Saved {
    ConstTensorView x, y;
  };
  // x [cells, dim] -> y [cells, dim], overwritten and, with saved, to stay as it is.
  void forward(Context& ctx, ConstTensorView x, const Packing& rows, TensorView y,
               Saved* saved) const;
  // dy [cells, dim] is consumed -> dx [cells, dim], overwritten; empty: not wanted.
  void backward(Context& ctx, const Saved& saved, TensorView dy, const Packing& rows,
                TensorView dx);
};

}  // namespace scgraft
