// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <vector>

#include "model/backbone.h"
#include "model/encoder_layer.h"
#include "model/inserted_rows.h"
#include "model/layer_stack.h"
#include "model/prefix_keys.h"

namespace scgraft {

// The layers of an encoder and a pass through all of them. Rows of a prefix (PrefixSite) join the
// tokens where a layer above reads them or a tap asks for them; else they are keys and values alone
// (PrefixKeys), which gives the same up to rounding.
class EncoderStack : public LayerStack<EncoderLayer> {
 public:
  using LayerStack::LayerStack;

  // x [tokens, dim] -> out [rows, dim], empty where options.before_last alone is wanted; x is
  // overwritten with options.save unset. Layers from first_saved on keep what backward() needs
  // (size(): none; -1: the input's gradient is wanted too). Taps get "layer<i>" and _in,
  // _attn_context, _attn_out, _norm1, _ffn_hidden, _out.
  void forward(Context& ctx, TensorView x, const Packing& packing, const Packing& rows,
               const EncodeOptions& options, int first_saved, TensorView out);
  // dout [rows, dim] is consumed. Returns the gradient of x, in memory of the arena of
  // activations, or an empty view where first_saved was not -1.
  TensorView backward(Context& ctx, const Packing& packing, const Packing& rows,
                      const EncodeOptions& options, TensorView dout);

 private:
  // Lowest layer whose prefix joins the tokens; size() when none does.
  int first_joined(const EncodeOptions& options, int64_t count) const;

  std::vector<EncoderLayer::Saved> saved_;
  std::vector<ConstTensorView> inputs_;  // of the layers that are computed again
  std::vector<PrefixKeys> prefix_keys_;  // of each layer, used below joined_
  int joined_ = 0;
  InsertedRows inserted_;
  // Which keys are seen, of the batch and with rows among them; empty: all.
  AttentionMask mask(bool longer) const;
  PreparedArray<int64_t> key_bits_, longer_key_bits_;
  DeviceArrays key_bits_memory_;
  int first_saved_ = 0;
  DType type_ = DType::f32;  // of what passes between layers
};

}  // namespace scgraft
