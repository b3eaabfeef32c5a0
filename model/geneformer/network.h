// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <optional>

#include "model/backbone.h"
#include "model/encoder_stack.h"
#include "model/geneformer/config.h"
#include "model/geneformer/heads.h"
#include "model/parameter_source.h"

namespace scgraft {

// The Geneformer network, a BERT encoder over the genes of a cell from the highest rank down:
//
//   x      = drop(LN(word[gene] + position[rank] + type[0]))
//   layers = post-norm encoder layers (model/encoder_layer.h), no final norm
//
// A token's value in the batch is its rank, 0 for the first token. What is attached at the site
// "tokens" is in the way of x.
// Source: Geneformer (Theodoris et al. 2023); names are those of BertForMaskedLM,
// BertForSequenceClassification and BertForTokenClassification.
class GeneformerNetwork : public Backbone {
 public:
  // Which heads exist: word prediction, the pooler, and a classifier of so many classes (0: none),
  // of cells after the pooler, else of tokens.
  struct Heads {
    bool words = true;
    bool pooler = false;
    int64_t classes = 0;
  };
  GeneformerNetwork(const GeneformerConfig& config, Heads heads, const ParameterSource& source);

  const GeneformerConfig& config() const { return config_; }
  WordPrediction* words() { return words_ ? &*words_ : nullptr; }
  Pooler* pooler() { return pooler_ ? &*pooler_ : nullptr; }
  Linear* classifier() { return classifier_ ? &*classifier_ : nullptr; }

  std::string_view kind() const override { return "geneformer"; }
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
  void front_forward(Context& ctx, const TokenBatch& batch, const EncodeOptions& options,
                     TensorView x);
  void front_backward(Context& ctx, const TokenBatch& batch, const EncodeOptions& options,
                      TensorView dx);
  bool tables_trainable() const;  // or the norm of their sum
  bool token_site_trainable() const { return token_site_ != nullptr && token_site_->trainable(); }
  Dropout front_dropout(bool training) const;
  std::vector<Linear*> linears();
  std::vector<LayerNorm*> norms();

  GeneformerConfig config_;
  ParameterSet parameters_;
  Parameter* words_table_ = nullptr;
  Parameter* positions_table_ = nullptr;
  Parameter* types_table_ = nullptr;
  LayerNorm norm_;
  HiddenSite* token_site_ = nullptr;
  EncoderStack encoder_;
  std::optional<WordPrediction> words_;
  std::optional<Pooler> pooler_;
  std::optional<Linear> classifier_;
  LayerNorm::Saved norm_saved_;
  PreparedArray<int32_t> ranks_, types_;  // rows of the tables for the distinct ranks of a batch
  DeviceArrays rank_memory_;
  DType product_ = DType::f32;
};

// Fresh values as the original initialises them, a function of (seed, name).
ParameterSource geneformer_initialiser(uint64_t seed, DType dtype = DType::f32);

}  // namespace scgraft
