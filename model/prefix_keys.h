// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <vector>

#include "kernels/packing.h"
#include "model/encoder_layer.h"

namespace scgraft {

// The rows of a prefix in a layer above which none of them is read, because the next layer has rows
// of its own or there is none: what their queries and the rest of the layer would give is lost.
// They are in it as keys and values alone, computed once for all cells:
//
//   k = K(n), v = V(n);   n the rows [count, dim], in a pre-norm layer LN1 of them
//
// through the layer's own projections, with what is attached to these. To be the layer's
// EncoderLayer::keys_values during its pass. What a pass keeps lies in ctx.activations().
class PrefixKeys : public KeyValueSite {
 public:
  // type: of what passes between layers.
  void forward(Context& ctx, EncoderLayer& layer, bool training, DType type);
  // Before the layer's backward pass: memory for gradients of k and v, where they are wanted.
  void begin_backward(Context& ctx);
  // After it: gradients of the rows and of what made k and v of them are accumulated.
  void backward(Context& ctx, EncoderLayer& layer, bool training);

  AttentionPrefix rows() const override { return front_; }
  bool trainable() const override { return wanted_; }
  AttentionPrefixGradient gradient() override { return gradient_; }

 private:
  Packing packing(Context& ctx, int64_t count);

  AttentionPrefix front_;
  AttentionPrefixGradient gradient_;
  ConstTensorView n_;
  LayerNorm::Saved norm_;
  bool wanted_ = false;
  std::vector<int32_t> offsets_;  // the rows as one cell without a number
  DevicePacking packing_;
  Device device_;
};

}  // namespace scgraft
