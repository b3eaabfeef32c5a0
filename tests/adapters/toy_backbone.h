// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "model/encoder_stack.h"
#include "model/layered_backbone.h"
#include "model/parameter_source.h"
#include "model/tables.h"

namespace scgraft {

// A fifth backbone, as small as one can be: a table of genes and post-norm layers. It is here to
// show what a new one needs: this file and a line in each table that lists backbones.
class ToyBackbone : public LayeredBackbone<EncoderStack> {
 public:
  explicit ToyBackbone(const ParameterSource& source)
      : LayeredBackbone({.before = "blocks.", .projections = {"q", "k", "v", "o", "up", "down"}}) {
    const ParameterMaker make(parameters_, source);
    genes_ = &make.parameter("genes.weight", {20, kDim});
    for (int i = 0; i < 2; ++i) {
      const std::string name = encoder_.layer_path(i) + ".";
      EncoderLayer layer;
      layer.index = i;
      layer.heads = 4;
      layer.q = make.linear(name + "q", kDim, kDim);
      layer.k = make.linear(name + "k", kDim, kDim);
      layer.v = make.linear(name + "v", kDim, kDim);
      layer.out = make.linear(name + "o", kDim, kDim);
      layer.ffn_in = make.linear(name + "up", kDim, 24);
      layer.ffn_out = make.linear(name + "down", 24, kDim);
      layer.norm1 = make.norm(name + "norm1", kDim);
      layer.norm2 = make.norm(name + "norm2", kDim);
      encoder_.layers.push_back(std::move(layer));
    }
  }

  std::string_view kind() const override { return "toy"; }
  int64_t dim() const override { return kDim; }
  std::vector<Parameter*> encoder_parameters() override { return parameters_.all(); }
  void encode(Context& ctx, const TokenBatch& batch, const EncodeOptions& options,
              TensorView out) override {
    const Packing packing = batch.packing();
    const TensorView x = ctx.activations().take({packing.tokens(), kDim}, genes_->value.dtype());
    const TensorView rows = tokens_ == nullptr ? x : ctx.activations().take(x.shape(), x.dtype());
    const ConstTensorView table = std::as_const(genes_->value).view();
    const TensorView known =
        ctx.activations().take({batch.unique_genes().numel(), kDim}, table.dtype());
    embedding_sum(ctx, table, batch.unique_genes(), {}, {}, {}, batch.gene_rows(), known);
    embedding_sum(ctx, known, batch.gene_index(), {}, {}, {}, packing, rows);
    if (tokens_ != nullptr) tokens_->forward(ctx, rows, packing, options.save, x);
    const int frontier = front_trainable() ? -1 : encoder_.frontier();
    encoder_.forward(ctx, x, packing, rows_of(batch, options), options,
                     options.save ? frontier : encoder_.size(), out);
  }
  void encode_backward(Context& ctx, const TokenBatch& batch, const EncodeOptions& options,
                       TensorView dout) override {
    Arena::Scope gradients(ctx.activations());
    const Packing packing = batch.packing();
    TensorView dx = encoder_.backward(ctx, packing, rows_of(batch, options), options, dout);
    if (dx.empty()) return;
    if (tokens_ != nullptr) {
      TensorView below;
      if (genes_->trainable()) below = ctx.activations().take(dx.shape(), dx.dtype());
      tokens_->backward(ctx, dx, packing, below);
      dx = below;
    }
    if (!genes_->trainable()) return;
    const TensorView dgenes =
        ctx.activations().take({batch.unique_genes().numel(), kDim}, dx.dtype());
    table_gradient(ctx, dx, batch.gene_uses(), {}, packing, dgenes);
    add_rows(ctx, dgenes, batch.unique_genes(), genes_->grad.view());
  }

 private:
  static constexpr int64_t kDim = 16;
  static Packing rows_of(const TokenBatch& batch, const EncodeOptions& options) {
    return options.rows == LayerRows::cls ? batch.cell_rows() : batch.packing();
  }
  bool front_trainable() const { return genes_->trainable() || is_trainable(tokens_); }

  HiddenSite*& token_site() override { return tokens_; }

  Parameter* genes_ = nullptr;
  HiddenSite* tokens_ = nullptr;
};

inline std::unique_ptr<ToyBackbone> toy_backbone(uint64_t seed = 1, DType dtype = DType::f32) {
  return std::make_unique<ToyBackbone>([=](const std::string& name, const Shape& shape) {
    Parameter p{name, Tensor(shape, dtype), {}};
    if (name.find("norm") != std::string::npos)
      fill(p, name.ends_with(".weight") ? 1.0 : 0.0);
    else
      initialise_uniform(p, 0.3, seed);
    return std::move(p.value);
  });
}

}  // namespace scgraft
