// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <optional>

#include "model/encoder_stack.h"
#include "model/geneformer/config.h"
#include "model/geneformer/heads.h"
#include "model/layered_backbone.h"
#include "model/parameter_source.h"

namespace scgraft {

// The Geneformer network, a BERT encoder over the genes of a cell from the highest rank down:
//
//   x      = drop(LN(word[gene] + position[rank] + type[0]))
//   layers = post-norm encoder layers (model/encoder_layer.h), no final norm
//
// A token's value in the batch is its rank, 0 for the first token. What is attached at the site
// "tokens" is in the way of x. Where the first layer has keys and values of an adapter
// (KeyValueSite), ranks count from their number on, as positions do behind past keys in
// transformers' BertModel. Source: Geneformer (Theodoris et al. 2023); names are those of
// BertForMaskedLM, BertForSequenceClassification and BertForTokenClassification.
class GeneformerNetwork : public LayeredBackbone<EncoderStack> {
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
  std::vector<Parameter*> encoder_parameters() override;
  void encode(Context& ctx, const TokenBatch& batch, const EncodeOptions& options,
              TensorView out) override;
  void encode_backward(Context& ctx, const TokenBatch& batch, const EncodeOptions& options,
                       TensorView dout) override;

 private:
  void front_forward(Context& ctx, const TokenBatch& batch, const EncodeOptions& options,
                     TensorView x);
  void front_backward(Context& ctx, const TokenBatch& batch, const EncodeOptions& options,
                      TensorView dx);
  bool tables_trainable() const;  // or the norm of their sum
  bool token_site_trainable() const { return token_site_ != nullptr && token_site_->trainable(); }
  Dropout front_dropout(bool training) const;
  HiddenSite*& token_site() override { return token_site_; }
  std::vector<Linear*> linears() override;
  std::vector<LayerNorm*> norms() override;

  GeneformerConfig config_;
  Parameter* words_table_ = nullptr;
  Parameter* positions_table_ = nullptr;
  Parameter* types_table_ = nullptr;
  LayerNorm norm_;
  HiddenSite* token_site_ = nullptr;
  std::optional<WordPrediction> words_;
  std::optional<Pooler> pooler_;
  std::optional<Linear> classifier_;
  LayerNorm::Saved norm_saved_;
  PreparedArray<int32_t> ranks_, types_;  // rows of the tables for the distinct ranks of a batch
  DeviceArrays rank_memory_;
};

// Fresh values as the original initialises them, a function of (seed, name).
ParameterSource geneformer_initialiser(uint64_t seed, DType dtype = DType::f32);

}  // namespace scgraft
