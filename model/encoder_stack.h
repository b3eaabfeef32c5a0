// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string>
#include <vector>

#include "model/backbone.h"
#include "model/encoder_layer.h"
#include "model/inserted_rows.h"
#include "model/linear_sites.h"

namespace scgraft {

// The layers of a post-norm encoder and a pass through all of them.
class EncoderStack {
 public:
  explicit EncoderStack(LinearSites sites) : sites_(std::move(sites)) {}

  // To be filled by whoever makes the parameters.
  std::vector<EncoderLayer> layers;
  int size() const { return static_cast<int>(layers.size()); }

  std::vector<std::string> linear_sites() const { return sites_.names(layers.size()); }
  Linear& linear_site(const std::string& name);
  std::string module_path(const std::string& site) const {
    return sites_.module_path(site, layers.size());
  }
  std::string layer_path(int layer) const { return sites_.layer_path(layer); }
  std::vector<std::string> hidden_sites() const;
  HiddenSite*& hidden_site(const std::string& name);
  // What is attached at hidden sites.
  std::vector<HiddenSite*> attached();
  std::vector<Linear*> linears();
  std::vector<LayerNorm*> norms();
  void set_precision(DType product);

  // Lowest layer with anything to train, rows that join its input among it; size() when there is
  // none.
  int frontier() const;

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
  LinearSites sites_;
  // Which rows go through a layer: those of the batch, or with rows of an adapter among them.
  int first_prefixed() const;  // size() when none is
  std::vector<EncoderLayer::Saved> saved_;
  InsertedRows inserted_;
  // Which keys are seen, of the batch and with rows among them; empty: all.
  AttentionMask mask(bool longer) const;
  PreparedArray<int64_t> key_bits_, longer_key_bits_;
  DeviceArrays key_bits_memory_;
  int first_saved_ = 0;
  DType type_ = DType::f32;  // of what passes between layers
};

}  // namespace scgraft
