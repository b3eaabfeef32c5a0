// SPDX-License-Identifier: Apache-2.0
#include "model/scbert/network.h"

#include <algorithm>
#include <cmath>

#include "kernels/add.h"
#include "kernels/cast.h"
#include "model/tables.h"

namespace scgraft {

ScbertNetwork::ScbertNetwork(const ScbertConfig& config, int64_t features, Heads heads,
                             const ParameterSource& source)
    : LayeredBackbone({.before = "performer.net.layers.",
                       .projections = {"0.fn.to_q", "0.fn.to_k", "0.fn.to_v", "0.fn.to_out",
                                       "1.fn.fn.w1", "1.fn.fn.w2"}}),
      config_(config) {
  const int64_t d = config_.dim;
  const int64_t inner = config_.heads * config_.head_dim;
  const ParameterMaker make(parameters_, source);
  tokens_ = &make.parameter("token_emb.weight", {config_.tokens, d});
  positions_ = &make.parameter("pos_emb.emb.weight", {config_.positions, d});
  for (int i = 0; i < config_.layers; ++i) {
    const std::string name = encoder_.layer_path(i);
    PerformerLayer layer;
    layer.heads = config_.heads;
    if (config_.generalized) layer.favor.kernel = FavorKernel::relu;
    layer.norm1 = make.norm(name + ".0.norm", d);
    layer.projection = &make.parameter(name + ".0.fn.fast_attention.projection_matrix",
                                       {features, config_.head_dim});
    layer.q = make.linear(name + ".0.fn.to_q", d, inner, config_.qkv_bias);
    layer.k = make.linear(name + ".0.fn.to_k", d, inner, config_.qkv_bias);
    layer.v = make.linear(name + ".0.fn.to_v", d, inner, config_.qkv_bias);
    layer.out = make.linear(name + ".0.fn.to_out", inner, d);
    layer.norm2 = make.norm(name + ".1.norm", d);
    layer.ffn_in = make.linear(name + ".1.fn.fn.w1", d, config_.ffn_factor * d);
    layer.ffn_out = make.linear(name + ".1.fn.fn.w2", config_.ffn_factor * d, d);
    encoder_.layers.push_back(std::move(layer));
  }
  norm_ = make.norm("norm", d);
  if (heads.bins) bins_.emplace(make.linear("to_out", d, config_.tokens));
  if (heads.classes > 0)
    classifier_.emplace(RowClassifier{make.linear("to_out.conv1", d, 1),
                                      make.linear("to_out.fc1", heads.rows, heads.width1),
                                      make.linear("to_out.fc2", heads.width1, heads.width2),
                                      make.linear("to_out.fc3", heads.width2, heads.classes)});
}

std::vector<Parameter*> ScbertNetwork::encoder_parameters() {
  std::vector<Parameter*> all;
  for (Parameter* p : parameters_.all())
    if (!p->name.starts_with("to_out.") && !p->name.ends_with("projection_matrix"))
      all.push_back(p);
  return all;
}

int ScbertNetwork::frontier() const {
  return tables_trainable() || is_trainable(token_site_) ? -1 : encoder_.frontier();
}

void ScbertNetwork::front_forward(Context& ctx, const TokenBatch& batch,
                                  const EncodeOptions& options, TensorView x) {
  const int64_t d = config_.dim;
  const DType stored = tokens_->value.dtype();
  Arena::Scope scratch(ctx.scratch());
  for (const int32_t id : batch.host_unique_genes())
    require(id >= 0 && id < config_.tokens, "scbert: bin ", id, " is not one of ", config_.tokens);
  places_.host.clear();
  for (const float place : batch.host_unique_values()) {
    require<DataError>(
        place >= 0 && place < static_cast<float>(config_.positions) && place == std::floor(place),
        "scbert: a cell has a token at position ", place, ", this model has ", config_.positions,
        " positions");
    places_.host.push_back(static_cast<int32_t>(place));
  }
  place_memory_.send(ctx, places_);
  const auto rows_of = [&](const Parameter& table, ConstTensorView index, const Packing& rows) {
    const TensorView gathered = ctx.activations().take({index.numel(), d}, stored);
    embedding_sum(ctx, std::as_const(table.value).view(), index, {}, {}, {}, rows, gathered);
    return in_type(ctx, gathered, x.dtype());
  };
  const ConstTensorView bins = rows_of(*tokens_, batch.unique_genes(), batch.gene_rows());
  const ConstTensorView places = rows_of(*positions_, places_.view(), batch.value_rows());
  const TensorView sum = token_site_ != nullptr ? ctx.activations().take(x.shape(), x.dtype()) : x;
  embedding_sum(ctx, bins, batch.gene_index(), places, batch.value_index(), {}, batch.packing(),
                sum);
  if (token_site_ != nullptr) token_site_->forward(ctx, sum, batch.packing(), options.save, x);
}

void ScbertNetwork::encode(Context& ctx, const TokenBatch& batch, const EncodeOptions& options,
                           TensorView out) {
  const Packing packing = batch.packing();
  require(options.rows == LayerRows::all, "scbert: every row of a cell is wanted by its heads");
  require(options.visible.empty(), "scbert: tokens of a cell all see each other");
  const Shape shape{encoded_rows(batch), config_.dim};
  require(out.shape() == shape, "scbert: the result must be ", shape, ", got ", out.shape());
  type_ = activation_type(ctx, tokens_->value.dtype(), product_);
  first_saved_ = options.save ? frontier() : encoder_.size();

  const TensorView x = ctx.activations().take({packing.tokens(), config_.dim}, type_);
  front_forward(ctx, batch, options, x);
  const ConstTensorView y = encoder_.forward(ctx, x, packing, options, first_saved_);
  const bool here = type_ == out.dtype();
  const TensorView normed = here ? out : ctx.activations().take(shape, type_);
  norm_.forward(ctx, y, {}, {}, nullptr, normed, options.save ? &norm_saved_ : nullptr);
  if (!here) cast(ctx, normed, out);
}

void ScbertNetwork::attention_received(Context& ctx, const TokenBatch& batch, AttentionOf rows,
                                       TensorView received) {
  const int64_t tokens = batch.tokens();
  require(received.shape() == Shape{tokens} && received.dtype() == DType::f32 &&
              received.device().is_cpu(),
          "scbert: what tokens receive must be ", Shape{tokens}, " of f32 in host memory, got ",
          received.shape(), " of ", received.dtype(), " on ", received.device());
  for (const PerformerLayer& layer : encoder_.layers)
    if (layer.prefix != nullptr || layer.keys_values != nullptr)
      throw ConfigError(
          "scbert: an adapter of prefixes puts rows among the keys, and what these receive is no "
          "gene's; attribute with the model alone or another adapter",
          "E-ATTRIBUTE");
  const Packing packing = batch.packing();
  float* sum = received.as<float>();
  std::fill_n(sum, tokens, 0.0f);
  const float share = 1.0f / static_cast<float>(config_.heads * encoder_.size());
  Tensor on_host({config_.heads, tokens}, DType::f32);
  size_t layer = 0;
  const Tap tap = [&](const std::string& name, ConstTensorView view) {
    if (name != cat("layer", layer, rows == AttentionOf::updated ? "_mid" : "_in")) return;
    Arena::Scope activations(ctx.activations());
    Arena::Scope scratch(ctx.scratch());
    const TensorView by_head = scratch.take(on_host.shape(), DType::f32);
    // Taps get f32; the layer computes on what it was given.
    encoder_.layers[layer++].received(ctx, in_type(ctx, view, type_), packing, by_head);
    copy(ctx, by_head, on_host.view());
    ctx.synchronize();
    const float* from = on_host.as<float>();
    for (int64_t head = 0; head < config_.heads; ++head)
      for (int64_t i = 0; i < tokens; ++i) sum[i] += share * from[head * tokens + i];
  };
  Arena::Scope activations(ctx.activations());
  const TensorView out = activations.take({encoded_rows(batch), config_.dim}, DType::f32);
  encode(ctx, batch, {.tap = &tap}, out);
}

void ScbertNetwork::encode_backward(Context& ctx, const TokenBatch& batch,
                                    const EncodeOptions& options, TensorView dout) {
  if (first_saved_ >= encoder_.size() && !norm_.trainable()) return;
  const Packing packing = encoder_.packing();
  Arena::Scope gradients(ctx.activations());
  TensorView dy = dout;
  if (type_ != dout.dtype()) {
    dy = ctx.activations().take(dout.shape(), type_);
    cast(ctx, dout, dy);
  }
  norm_.backward(ctx, norm_saved_, dy, {}, &packing, dy, {});
  const TensorView dx = encoder_.backward(ctx, options, dy);
  if (!dx.empty()) front_backward(ctx, batch, dx);
}

void ScbertNetwork::front_backward(Context& ctx, const TokenBatch& batch, TensorView dx) {
  const int64_t d = config_.dim;
  const DType stored = tokens_->value.dtype();
  const Packing packing = batch.packing();
  Arena::Scope scratch(ctx.scratch());
  if (token_site_ != nullptr) {
    TensorView below;
    if (tables_trainable()) below = ctx.scratch().take(dx.shape(), dx.dtype());
    token_site_->backward(ctx, dx, packing, below);
    dx = below;
  }
  const auto into = [&](Parameter& table, ConstTensorView index, const RowUses& uses) {
    if (!table.trainable()) return;
    const TensorView rows = ctx.scratch().take({index.numel(), d}, stored);
    table_gradient(ctx, dx, uses, {}, packing, rows);
    add_rows(ctx, rows, index, table.grad.view());
  };
  into(*tokens_, batch.unique_genes(), batch.gene_uses());
  into(*positions_, places_.view(), batch.value_uses());
}

std::vector<Linear*> ScbertNetwork::linears() {
  std::vector<Linear*> all = encoder_.linears();
  if (bins_) all.push_back(&*bins_);
  if (classifier_)
    for (Linear* linear :
         {&classifier_->row, &classifier_->fc1, &classifier_->fc2, &classifier_->fc3})
      all.push_back(linear);
  return all;
}

std::vector<LayerNorm*> ScbertNetwork::norms() {
  std::vector<LayerNorm*> all = encoder_.norms();
  all.push_back(&norm_);
  return all;
}

}  // namespace scgraft
