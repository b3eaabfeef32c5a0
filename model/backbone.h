// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/batch.h"
#include "model/encoder_layer.h"
#include "model/linear.h"
#include "model/parameter.h"

namespace scgraft {

// Receives named activations while a network runs, for `trace`. Token rows are packed.
using Tap = std::function<void(const std::string& name, ConstTensorView view)>;

struct EncodeOptions {
  bool training = false;            // dropout is active
  bool save = false;                // keep what encode_backward() needs
  LayerRows rows = LayerRows::all;  // what the last layer must produce
  const Tap* tap = nullptr;
  // What the last layer reads, [tokens, dim] in the type of the result, overwritten; empty: not
  // wanted. With it the result may be empty: then the last layer is not computed. Of backbones with
  // an EncoderStack.
  TensorView before_last = {};
  // One mark per token, 0 where no token may see it (as padding that is in the batch); empty: every
  // token sees all of its cell. In host memory, until encode_backward() where that follows.
  std::span<const uint8_t> visible = {};
  // Of networks that take them, in host memory as above: the perturbation flag of each token, the
  // batch label of each cell, and the domain whose batch norm all cells go through.
  std::span<const int32_t> flags = {};
  std::span<const int32_t> batches = {};
  int32_t domain = 0;
  // Batch norms take the moments of this batch and collect them, as they do in training; else they
  // use what was collected.
  bool batch_moments = false;
};

// A pre-trained single-cell encoder: tokens of cells in, rows of width dim() out. Backbones differ
// first by their data (sizes, tokeniser, names), and only then by code.
class Backbone {
 public:
  virtual ~Backbone() = default;

  virtual std::string_view kind() const = 0;  // "scgpt"
  virtual int64_t dim() const = 0;
  virtual int layer_count() const = 0;
  virtual ParameterSet& parameters() = 0;
  // Parameters of the encoder itself, without heads.
  virtual std::vector<Parameter*> encoder_parameters() = 0;

  // Where a LinearSite may attach: "layers.3.attn.q", "layers.3.ffn.in", ... in layer order.
  virtual std::vector<std::string> linear_sites() const = 0;
  // Throws ConfigError listing the sites when there is none of this name.
  virtual Linear& linear_site(const std::string& name) = 0;
  // Name of the projection a site stands for in the published checkpoint, e.g.
  // "transformer_encoder.layers.3.self_attn.q_proj": the module path of adapter files.
  virtual std::string module_path(const std::string& site) const = 0;

  // Where a HiddenSite may attach: "tokens", the rows a token contributes before the layers, and
  // per layer "layers.3.mid" (what the attention part gives to the feed-forward part),
  // "layers.3.ffn.beside" and "layers.3.attn.branch" (model/encoder_layer.h,
  // model/performer_layer.h).
  virtual std::vector<std::string> hidden_sites() const = 0;
  // The place itself, null when nothing is attached; not owned. Throws ConfigError listing the
  // sites when there is none of this name.
  virtual HiddenSite*& hidden_site(const std::string& name) = 0;
  // Where a PrefixSite may attach, as hidden_site(); 0 <= layer < layer_count().
  virtual PrefixSite*& prefix_site(int layer) = 0;
  // Where a KeyValueSite may attach, as prefix_site().
  virtual KeyValueSite*& key_value_site(int layer) = 0;
  // Of the attention of a layer.
  virtual int64_t heads() const = 0;
  // Of its keys, all heads together: dim(), or what a layer projects to.
  virtual int64_t key_width() const = 0;
  // What adapter files call a layer: "transformer_encoder.layers.3".
  virtual std::string layer_path(int layer) const = 0;

  // The batch and all tensors are on the device of the context, as the parameters are.
  // out: [tokens, dim] or, with LayerRows::cls, [cells, dim]; overwritten, and with `save` it must
  // stay as it is until encode_backward(). Activations are taken from ctx.activations(), which the
  // caller rewinds. One saved forward pass at a time.
  virtual void encode(Context& ctx, const TokenBatch& batch, const EncodeOptions& options,
                      TensorView out) = 0;
  // Accumulates the gradients of everything trainable at or below `out`. dout has the shape of out
  // and is consumed. Below the lowest trainable layer nothing is computed.
  virtual void encode_backward(Context& ctx, const TokenBatch& batch, const EncodeOptions& options,
                               TensorView dout) = 0;

  // Moves the parameters to the device of the contexts that will run it; nothing happens when they
  // are there. Packed copies are made again.
  virtual void move_to(Device device) = 0;
  // To be called after an optimizer step: packed copies of trainable weights are made again.
  virtual void parameters_updated() = 0;
  // Products with frozen weights use this type: f32 or bf16, on a CUDA device also f16. There
  // activations and their gradients have it too.
  virtual void set_precision(DType product) = 0;
  // Whether a saved pass keeps the inputs of its layers alone (model/layer_stack.h). An encoder's;
  // a decoder behind it keeps what it reads.
  virtual void set_recompute(bool recompute) = 0;
  // In training the random features of attention are drawn again every so many steps; 0: never,
  // which is where a network begins (model/performer_stack.h). Throws ConfigError (E-REDRAW) where
  // there are none.
  virtual void redraw_features(int64_t interval) {
    if (interval > 0)
      throw ConfigError(cat("train.redraw_interval is ", interval, ", but ", kind(),
                            " has no random features; leave it at 0"),
                        "E-REDRAW");
  }
};

}  // namespace scgraft
