// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <memory>
#include <optional>

#include "model/encoder_stack.h"
#include "model/layered_backbone.h"
#include "model/parameter_source.h"
#include "model/scgpt/affine_decoder.h"
#include "model/scgpt/batch_encoder.h"
#include "model/scgpt/config.h"
#include "model/scgpt/front.h"
#include "model/scgpt/heads.h"
#include "model/scgpt/query_mvc.h"

namespace scgraft {

// The scGPT transformer: what its front makes of the tokens (model/scgpt/front.h), then encoder
// layers (model/encoder_layer.h), no final norm. Its heads stand beside it, as many as the
// config and the checkpoint have.
// Source: scGPT (Cui et al. 2024); names are those of its non-flash checkpoints.
class ScgptNetwork : public LayeredBackbone<EncoderStack> {
 public:
  // heads: which of the expression decoder, the MVC decoder and the classification head exist. The
  // config says of what kind they are.
  struct Heads {
    bool decoder = true;
    bool mvc = true;
    int64_t classes = 0;    // 0: no classification head
    bool zeros = false;     // both decoders also tell whether a gene is expressed
    int64_t adversary = 0;  // batches that the adversarial head tells apart; 0: no such head
  };
  ScgptNetwork(const ScgptConfig& config, Heads heads, const ParameterSource& source);

  const ScgptConfig& config() const { return config_; }
  // Each null where the model has none. A perturbation network has an affine decoder in place of
  // the plain one; an MVC decoder is of one of two kinds (ScgptConfig::mvc_style).
  ExpressionDecoder* decoder() { return decoder_ ? &*decoder_ : nullptr; }
  ExpressionDecoder* zero_decoder() { return zero_decoder_ ? &*zero_decoder_ : nullptr; }
  AffineDecoder* affine_decoder() { return affine_ ? &*affine_ : nullptr; }
  MvcDecoder* mvc() { return mvc_ ? &*mvc_ : nullptr; }
  QueryMvc* query_mvc() { return query_mvc_ ? &*query_mvc_ : nullptr; }
  Classifier* classifier() { return classifier_ ? &*classifier_ : nullptr; }
  // Tells the batches of cells apart. Its gradient by the cells goes into the encoder with the
  // other sign.
  Classifier* adversary() { return adversary_ ? &*adversary_ : nullptr; }
  // What heads read beside the tokens and the cells of the last encode().
  BatchEncoder* batch_encoder() { return batch_encoder_ ? &*batch_encoder_ : nullptr; }

  // LN(E[gene]) of the batch's distinct genes [unique genes, dim], as the last encode() computed
  // it; lives as long as that pass's activations. Input of the MVC head.
  ConstTensorView gene_rows() { return front_->genes().rows(); }
  // Adds dgene [unique genes, dim] to the gradient that encode_backward() sends into the gene
  // encoder; call before it. Nothing happens when the gene encoder is frozen.
  void add_gene_gradient(Context& ctx, ConstTensorView dgene) {
    front_->genes().add_gradient(ctx, dgene);
  }
  bool gene_encoder_trainable() { return front_->genes().trainable(); }

  // What batch norms collected of their batches: part of a checkpoint, trained by no optimizer.
  ParameterSet& buffers() { return buffers_; }

  std::string_view kind() const override { return "scgpt"; }
  int64_t dim() const override { return config_.dim; }
  std::vector<Parameter*> encoder_parameters() override;
  void encode(Context& ctx, const TokenBatch& batch, const EncodeOptions& options,
              TensorView out) override;
  void encode_backward(Context& ctx, const TokenBatch& batch, const EncodeOptions& options,
                       TensorView dout) override;

 private:
  void make_heads(Heads heads, const ParameterMaker& make);
  HiddenSite*& token_site() override { return front_->token_site(); }
  std::vector<Linear*> linears() override;
  std::vector<LayerNorm*> norms() override;
  std::vector<Parameter*> moving() override;

  ScgptConfig config_;
  ParameterSet buffers_;
  std::optional<ScgptFront> front_;
  std::optional<BatchEncoder> batch_encoder_;
  std::optional<ExpressionDecoder> decoder_, zero_decoder_;
  std::optional<AffineDecoder> affine_;
  std::optional<MvcDecoder> mvc_;
  std::optional<QueryMvc> query_mvc_;
  std::optional<Classifier> classifier_, adversary_;
};

// Fresh values as the original initialises them, a function of (seed, name).
ParameterSource scgpt_initialiser(uint64_t seed, DType dtype = DType::f32);

}  // namespace scgraft
