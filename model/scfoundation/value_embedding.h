// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <vector>

#include "model/batch.h"
#include "model/linear.h"
#include "model/parameter_source.h"

namespace scgraft {

// Embedding of a real number v by soft bins:
//
//   a = leaky(W1 v + b1)      leaky(x) = x, or 0.1 x below zero
//   p = softmax(alpha a + W2 a + b2)
//   e = p T
//
// Two values are no numbers and have rows of their own: the pad and the mask value.
// Source: scFoundation (Hao et al. 2024), AutoDiscretizationEmbedding2.
class ValueEmbedding {
 public:
  struct Sizes {
    int64_t bins;
    int64_t dim;
    double alpha;
    float pad, mask;
  };
  // Parameters token_emb.mlp, mlp2, emb, emb_mask and emb_pad.
  ValueEmbedding(const ParameterMaker& make, const Sizes& sizes);

  // What the backward pass reads of one batch.
  struct Saved {
    ConstTensorView v, a, p;      // [values, 1], [values, bins] twice
    PreparedArray<int32_t> rows;  // [values] of [e ; mask ; pad]
    DeviceArrays memory;
  };

  bool trainable() const;
  std::vector<Linear*> linears() { return {&mlp1_, &mlp2_}; }
  // After the table moved or changed.
  void table_changed() { forward_stale_ = backward_stale_ = true; }
  void parameters_updated();

  // A row [values, dim] for every distinct value of the batch, of the type of the parameters, in
  // ctx.activations().
  TensorView forward(Context& ctx, const TokenBatch& batch, Saved& saved);
  // Accumulates the gradients of what is trainable. drows [values, dim].
  void backward(Context& ctx, const TokenBatch& batch, const Saved& saved, ConstTensorView drows);

 private:
  // The table as a weight [bins, dim]: e = p T is what a linear layer does backward.
  PackedWeight& packed(Context& ctx, PackedFor use);

  Sizes sizes_;
  Linear mlp1_, mlp2_;
  Parameter* table_;
  Parameter* mask_;
  Parameter* pad_;
  PackedWeight forward_, backward_;
  bool forward_stale_ = true, backward_stale_ = true;
};

}  // namespace scgraft
