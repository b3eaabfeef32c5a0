// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <memory>
#include <optional>

#include "model/encoder_stack.h"
#include "model/layered_backbone.h"
#include "model/parameter_source.h"
#include "model/scfoundation/config.h"
#include "model/scfoundation/decoder.h"
#include "model/scfoundation/heads.h"
#include "model/scfoundation/value_embedding.h"

namespace scgraft {

// The scFoundation network:
//
//   x      = E(value) + position[gene]     E: model/scfoundation/value_embedding.h
//   layers = post-norm transformer encoder with relu, then one more norm
//
// over the expressed entries of a cell only. A token's id in the batch is the entry of the cell (a
// gene, then T, then S), its value the entry's. The id behind the last one, with the pad value, is
// padding: a row that no other should see (EncodeOptions::visible). What is attached at the site
// "tokens" is in the way of x.
// Source: scFoundation (Hao et al. 2024); names are those of its checkpoints.
class ScfoundationNetwork : public LayeredBackbone<EncoderStack> {
 public:
  // features: of the decoder's attention; 0: a network without the decoder. classes: of a
  // classifier of cells; 0: none.
  ScfoundationNetwork(const ScfoundationConfig& config, int64_t features,
                      const ParameterSource& source, int64_t classes = 0);

  const ScfoundationConfig& config() const { return config_; }
  bool has_decoder() const { return decoder_.has_value(); }
  PartsClassifier* classifier() { return classifier_ ? &*classifier_ : nullptr; }
  // Of the keys of each cell (the default) or of the whole batch, as the published code.
  void set_stabiliser(FavorStabiliser stabiliser);

  // Values of all entries from the rows of the expressed ones: every entry of `whole` is embedded,
  // those that `batch` has take their row of `encoded` instead, and the decoder follows.
  //   batch    as encode() was called with, encoded [tokens, dim] its result
  //   whole    the same cells in the same order with all of their entries
  //   options  as those of encode(); with save, a gradient of `encoded` is kept for when the
  //            encoder or anything before it is trainable
  //   out      [tokens of whole, 1] of the type of the parameters, overwritten
  // Taps: decoder_embed, decoder_out and norm_out, the last being the embeddings of genes.
  void decode(Context& ctx, const TokenBatch& batch, ConstTensorView encoded,
              const TokenBatch& whole, const EncodeOptions& options, TensorView out);
  // Accumulates the gradients of the decoder and of what else embeds its entries. dout as out;
  // dencoded [tokens of batch, dim] overwritten, to be given to encode_backward().
  void decode_backward(Context& ctx, const TokenBatch& batch, const TokenBatch& whole,
                       const EncodeOptions& options, ConstTensorView dout, TensorView dencoded);

  std::string_view kind() const override { return "scfoundation"; }
  int64_t dim() const override { return config_.dim; }
  std::vector<Parameter*> encoder_parameters() override;
  void encode(Context& ctx, const TokenBatch& batch, const EncodeOptions& options,
              TensorView out) override;
  void encode_backward(Context& ctx, const TokenBatch& batch, const EncodeOptions& options,
                       TensorView dout) override;
  void move_to(Device device) override;
  void parameters_updated() override;
  void set_precision(DType product) override;

 private:
  // What a batch was embedded with.
  struct Front {
    ValueEmbedding::Saved values;
    TensorView value_rows;  // [values, dim]
  };
  void front_forward(Context& ctx, const TokenBatch& batch, const EncodeOptions& options,
                     TensorView x);
  void front_backward(Context& ctx, const TokenBatch& batch, TensorView dx);
  // Rows of the distinct entries of a batch, in the type of x.
  ConstTensorView place_rows(Context& ctx, const TokenBatch& batch, DType type);
  void add_place_gradient(Context& ctx, const TokenBatch& batch, ConstTensorView dx);
  // Which row of [values of whole ; encoded] an entry of `whole` is, and the way back.
  void match_entries(Context& ctx, const TokenBatch& batch, const TokenBatch& whole, bool back);
  bool tables_trainable() const { return values_->trainable() || places_->trainable(); }
  bool token_site_trainable() const { return token_site_ != nullptr && token_site_->trainable(); }
  // The lowest layer with anything to train; -1: what is before them.
  int frontier() const;
  bool trainable_below_decoder() const { return frontier() < encoder_.size() || norm_.trainable(); }
  HiddenSite*& token_site() override { return token_site_; }
  std::vector<Linear*> linears() override;
  std::vector<LayerNorm*> norms() override;

  ScfoundationConfig config_;
  std::optional<ValueEmbedding> values_;
  Parameter* places_ = nullptr;
  HiddenSite* token_site_ = nullptr;
  LayerNorm norm_;
  std::optional<EntryDecoder> decoder_;
  std::optional<PartsClassifier> classifier_;
  LayerNorm::Saved norm_saved_;
  int first_saved_ = 0;
  DType type_ = DType::f32;  // of what passes between layers
  Front encoded_, whole_;
  PreparedArray<int32_t> sources_, use_offsets_, use_entries_;
  DeviceArrays source_memory_;
};

}  // namespace scgraft
