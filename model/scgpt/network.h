// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <memory>
#include <optional>

#include "model/backbone.h"
#include "model/encoder_stack.h"
#include "model/parameter_source.h"
#include "model/scgpt/config.h"
#include "model/scgpt/heads.h"

namespace scgraft {

// The scGPT transformer with continuous value encoder:
//
//   x      = LN(E[gene]) + drop(LN(W2 relu(W1 min(value, 512) + b1) + b2))
//   layers = post-norm encoder layers (model/encoder_layer.h), no final norm
//
// Gene and value rows are computed once per distinct gene and value of a batch. What is attached at
// the site "tokens" is in the way of the value rows, between their norm and their dropout.
// Source: scGPT (Cui et al. 2024); names are those of its non-flash checkpoints.
class ScgptNetwork : public Backbone {
 public:
  // heads: which of the expression decoder, the MVC decoder and the classification head exist.
  struct Heads {
    bool decoder = true;
    bool mvc = true;
    int64_t classes = 0;  // 0: no classification head
  };
  ScgptNetwork(const ScgptConfig& config, Heads heads, const ParameterSource& source);

  const ScgptConfig& config() const { return config_; }
  ExpressionDecoder* decoder() { return decoder_ ? &*decoder_ : nullptr; }
  MvcDecoder* mvc() { return mvc_ ? &*mvc_ : nullptr; }
  Classifier* classifier() { return classifier_ ? &*classifier_ : nullptr; }

  // LN(E[gene]) of the batch's distinct genes [unique genes, dim], as the last encode() computed
  // it; lives as long as that pass's activations. Input of the MVC head.
  ConstTensorView gene_rows() const { return front_.gene; }
  // Adds dgene [unique genes, dim] to the gradient that encode_backward() sends into the gene
  // encoder; call before it. Nothing happens when the gene encoder is frozen.
  void add_gene_gradient(Context& ctx, ConstTensorView dgene);
  bool gene_encoder_trainable() const;

  std::string_view kind() const override { return "scgpt"; }
  int64_t dim() const override { return config_.dim; }
  int layer_count() const override { return encoder_.size(); }
  ParameterSet& parameters() override { return parameters_; }
  std::vector<Parameter*> encoder_parameters() override;
  std::vector<std::string> linear_sites() const override { return encoder_.linear_sites(); }
  Linear& linear_site(const std::string& name) override { return encoder_.linear_site(name); }
  std::string module_path(const std::string& site) const override {
    return encoder_.module_path(site);
  }
  std::vector<std::string> hidden_sites() const override;
  HiddenSite*& hidden_site(const std::string& name) override {
    return name == "tokens" ? token_site_ : encoder_.hidden_site(name);
  }
  PrefixSite*& prefix_site(int layer) override {
    return encoder_.layers.at(static_cast<size_t>(layer)).prefix;
  }
  std::string layer_path(int layer) const override { return encoder_.layer_path(layer); }
  void encode(Context& ctx, const TokenBatch& batch, const EncodeOptions& options,
              TensorView out) override;
  void encode_backward(Context& ctx, const TokenBatch& batch, const EncodeOptions& options,
                       TensorView dout) override;
  void move_to(Device device) override;
  void parameters_updated() override;
  void set_precision(DType product) override;

 private:
  // What the front end (everything before the layers) keeps.
  struct Front {
    ConstTensorView gene;  // [unique genes, dim]
    LayerNorm::Saved gene_norm;
    TensorView dgene;              // extra gradient from the MVC head
    ConstTensorView value_in;      // [unique values, 1]
    ConstTensorView value_hidden;  // [unique values, dim] after relu
    LayerNorm::Saved value_norm;
  };

  void front_forward(Context& ctx, const TokenBatch& batch, const EncodeOptions& options, bool save,
                     TensorView x);
  void front_backward(Context& ctx, const TokenBatch& batch, const EncodeOptions& options,
                      ConstTensorView dx);
  bool value_encoder_trainable() const;
  bool token_site_trainable() const { return token_site_ != nullptr && token_site_->trainable(); }
  std::vector<Linear*> linears();
  std::vector<LayerNorm*> norms();
  Dropout value_dropout(bool training) const;

  ScgptConfig config_;
  ParameterSet parameters_;
  Parameter* embedding_ = nullptr;
  LayerNorm gene_norm_;
  Linear value1_, value2_;
  LayerNorm value_norm_;
  HiddenSite* token_site_ = nullptr;
  EncoderStack encoder_;
  std::optional<ExpressionDecoder> decoder_;
  std::optional<MvcDecoder> mvc_;
  std::optional<Classifier> classifier_;
  Front front_;
  PreparedArray<float> clamped_;  // values of the batch on their way to the device
  DeviceArrays clamped_memory_;
  DType product_ = DType::f32;
};

// Fresh values as the original initialises them, a function of (seed, name).
ParameterSource scgpt_initialiser(uint64_t seed, DType dtype = DType::f32);

}  // namespace scgraft
