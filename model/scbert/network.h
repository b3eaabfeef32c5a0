// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <optional>

#include "model/layered_backbone.h"
#include "model/parameter_source.h"
#include "model/performer_stack.h"
#include "model/scbert/config.h"
#include "model/scbert/heads.h"

namespace scgraft {

// The scBERT network, a Performer over all genes of a cell in one order:
//
//   x      = token[bin] + position[gene]
//   layers = pre-norm layers with FAVOR+ attention (model/performer_stack.h), then one more norm
//
// A token's id in the batch is its bin, its value the position of its gene, 0 for the first. What
// is attached at the site "tokens" is in the way of x.
// Source: scBERT (Yang et al. 2022); names are those of its checkpoints.
class ScbertNetwork : public LayeredBackbone<PerformerStack> {
 public:
  // Which heads exist: prediction of bins, or a classifier of so many classes (0: none) of cells of
  // `rows` tokens.
  struct Heads {
    bool bins = true;
    int64_t classes = 0;
    int64_t rows = 0;
    int64_t width1 = 512, width2 = 128;
  };
  ScbertNetwork(const ScbertConfig& config, int64_t features, Heads heads,
                const ParameterSource& source);

  const ScbertConfig& config() const { return config_; }
  Linear* bins() { return bins_ ? &*bins_ : nullptr; }
  RowClassifier* classifier() { return classifier_ ? &*classifier_ : nullptr; }
  // Of the keys of each cell (the default) or of the whole batch, as the published code. Features
  // of relu (ScbertConfig::generalized) have none.
  void set_stabiliser(FavorStabiliser stabiliser) { encoder_.set_stabiliser(stabiliser); }
  // Whether rows of a prefix stay in what encode() gives, as in the published code of scPEFT, whose
  // head reads them. By default they go after the last layer.
  void keep_prefix(bool keep) { encoder_.keep_prefix(keep); }
  // Rows of what encode() gives: those of the batch, and a kept prefix of each cell.
  int64_t encoded_rows(const TokenBatch& batch) const {
    return batch.tokens() + batch.cells() * encoder_.more_rows();
  }
  // Of the rows that the last encode() gave.
  Packing encoded_packing() const { return encoder_.packing(); }

  // How much attention each token receives from the tokens of its cell, the mean over layers and
  // heads: what scores the genes of a cell. A cell's scores sum to the number of its tokens. No map
  // of tokens squared is formed.
  //   rows      of which the attention of a layer is taken: what it reads (attended), or what its
  //             attention part has given already, as the published code (updated)
  //   received  [tokens]  f32 in host memory, overwritten
  // Throws ConfigError (E-ATTRIBUTE) with rows of an adapter among the keys, which are no genes.
  enum class AttentionOf { attended, updated };
  void attention_received(Context& ctx, const TokenBatch& batch, AttentionOf rows,
                          TensorView received);

  std::string_view kind() const override { return "scbert"; }
  int64_t dim() const override { return config_.dim; }
  std::vector<Parameter*> encoder_parameters() override;
  void encode(Context& ctx, const TokenBatch& batch, const EncodeOptions& options,
              TensorView out) override;
  void encode_backward(Context& ctx, const TokenBatch& batch, const EncodeOptions& options,
                       TensorView dout) override;
  void redraw_features(int64_t interval) override { encoder_.redraw_features(interval); }

 private:
  void front_forward(Context& ctx, const TokenBatch& batch, const EncodeOptions& options,
                     TensorView x);
  void front_backward(Context& ctx, const TokenBatch& batch, TensorView dx);
  bool tables_trainable() const { return tokens_->trainable() || positions_->trainable(); }
  int frontier() const;
  HiddenSite*& token_site() override { return token_site_; }
  std::vector<Linear*> linears() override;
  std::vector<LayerNorm*> norms() override;

  ScbertConfig config_;
  Parameter* tokens_ = nullptr;
  Parameter* positions_ = nullptr;
  HiddenSite* token_site_ = nullptr;
  LayerNorm norm_;
  std::optional<Linear> bins_;
  std::optional<RowClassifier> classifier_;
  LayerNorm::Saved norm_saved_;
  int first_saved_ = 0;
  DType type_ = DType::f32;        // of what passes between layers
  PreparedArray<int32_t> places_;  // rows of the position table for the distinct values of a batch
  DeviceArrays place_memory_;
};

}  // namespace scgraft
