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
    : config_(config),
      sites_{.before = "performer.net.layers.",
             .projections = {"0.fn.to_q", "0.fn.to_k", "0.fn.to_v", "0.fn.to_out", "1.fn.fn.w1",
                             "1.fn.fn.w2"}} {
  const int64_t d = config_.dim;
  const int64_t inner = config_.heads * config_.head_dim;
  const ParameterMaker make(parameters_, source);
  tokens_ = &make.parameter("token_emb.weight", {config_.tokens, d});
  positions_ = &make.parameter("pos_emb.emb.weight", {config_.positions, d});
  for (int i = 0; i < config_.layers; ++i) {
    const std::string name = sites_.layer_path(i);
    PerformerLayer layer;
    layer.heads = config_.heads;
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
    layers_.push_back(std::move(layer));
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

void ScbertNetwork::set_stabiliser(FavorStabiliser stabiliser) {
  for (PerformerLayer& layer : layers_) layer.favor.stabiliser = stabiliser;
}

Linear& ScbertNetwork::linear_site(const std::string& name) {
  const auto [layer, site] = sites_.place(name, layers_.size());
  return *layers_[layer].linears()[site];
}

HiddenSite*& ScbertNetwork::hidden_site(const std::string& name) {
  if (name == "tokens") return token_site_;
  throw ConfigError(cat("no place \"", name, "\" to attach an adapter; scbert has tokens"),
                    "E-SITE");
}

PrefixSite*& ScbertNetwork::prefix_site(int) {
  throw ConfigError("no place for a prefix; scbert takes lora and token adapters", "E-SITE");
}

int ScbertNetwork::frontier() const {
  if (tables_trainable() || (token_site_ != nullptr && token_site_->trainable())) return -1;
  for (size_t i = 0; i < layers_.size(); ++i)
    if (layers_[i].trainable()) return static_cast<int>(i);
  return static_cast<int>(layers_.size());
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
  const Shape shape{packing.tokens(), config_.dim};
  require(options.rows == LayerRows::all, "scbert: every row of a cell is wanted by its heads");
  require(options.visible.empty(), "scbert: tokens of a cell all see each other");
  require(out.shape() == shape, "scbert: the result must be ", shape, ", got ", out.shape());
  type_ = activation_type(ctx, tokens_->value.dtype(), product_);
  const auto layers = static_cast<int>(layers_.size());
  first_saved_ = options.save ? frontier() : layers;
  saved_.assign(layers_.size(), {});

  TensorView x = ctx.activations().take(shape, type_);
  TensorView spare;
  front_forward(ctx, batch, options, x);
  for (int i = 0; i < layers; ++i) {
    const bool save = i >= first_saved_;
    PerformerLayer& layer = layers_[static_cast<size_t>(i)];
    const TensorView y = save || spare.empty() ? ctx.activations().take(shape, type_) : spare;
    PerformerLayer::Taps taps;
    Arena::Scope tap_memory(ctx.scratch());
    const auto tell = [&](const char* what, ConstTensorView view) {
      Arena::Scope activations(ctx.activations());
      (*options.tap)(cat("layer", i, what), in_type(ctx, view, out.dtype()));
    };
    if (options.tap != nullptr) {
      const Shape wide{packing.tokens(), layer.q.out()};
      taps = {.n1 = tap_memory.take(shape, type_),
              .q = tap_memory.take(wide, type_),
              .k = tap_memory.take(wide, type_),
              .v = tap_memory.take(wide, type_),
              .favor = tap_memory.take(wide, type_),
              .attention_out = tap_memory.take(shape, type_),
              .mid = tap_memory.take(shape, type_),
              .ffn_out = tap_memory.take(shape, type_)};
      tell("_in", x);
    }
    layer.forward(ctx, x, packing, options.training, y,
                  save ? &saved_[static_cast<size_t>(i)] : nullptr,
                  options.tap != nullptr ? &taps : nullptr);
    if (options.tap != nullptr) {
      tell("_attn_prenorm", taps.n1);
      tell("_q", taps.q);
      tell("_k", taps.k);
      tell("_v", taps.v);
      tell("_favor_out", taps.favor);
      tell("_attn_out", taps.attention_out);
      tell("_mid", taps.mid);
      tell("_ff_out", taps.ffn_out);
    }
    spare = x;
    x = y;
  }
  const bool here = type_ == out.dtype();
  const TensorView normed = here ? out : ctx.activations().take(shape, type_);
  norm_.forward(ctx, x, {}, {}, nullptr, normed, options.save ? &norm_saved_ : nullptr);
  if (!here) cast(ctx, normed, out);
}

void ScbertNetwork::encode_backward(Context& ctx, const TokenBatch& batch,
                                    const EncodeOptions& options, TensorView dout) {
  const auto layers = static_cast<int>(layers_.size());
  if (first_saved_ >= layers && !norm_.trainable()) return;
  const Packing packing = batch.packing();
  Arena::Scope gradients(ctx.activations());
  TensorView dy = dout;
  if (type_ != dout.dtype()) {
    dy = ctx.activations().take(dout.shape(), type_);
    cast(ctx, dout, dy);
  }
  norm_.backward(ctx, norm_saved_, dy, {}, &packing, dy, {});
  for (int i = layers - 1; i >= std::max(first_saved_, 0); --i)
    layers_[static_cast<size_t>(i)].backward(ctx, saved_[static_cast<size_t>(i)], packing,
                                             options.training, dy, i > first_saved_);
  if (first_saved_ < 0) front_backward(ctx, batch, dy);
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
  std::vector<Linear*> all;
  for (PerformerLayer& layer : layers_)
    for (Linear* linear : layer.linears()) all.push_back(linear);
  if (bins_) all.push_back(&*bins_);
  if (classifier_)
    for (Linear* linear :
         {&classifier_->row, &classifier_->fc1, &classifier_->fc2, &classifier_->fc3})
      all.push_back(linear);
  return all;
}

std::vector<LayerNorm*> ScbertNetwork::norms() {
  std::vector<LayerNorm*> all = {&norm_};
  for (PerformerLayer& layer : layers_)
    for (LayerNorm* norm : {&layer.norm1, &layer.norm2}) all.push_back(norm);
  return all;
}

void ScbertNetwork::move_to(Device device) {
  if (!scgraft::move_to(parameters_.all(), device)) return;
  for (Linear* linear : linears()) linear->weight_changed();
  for (LayerNorm* norm : norms()) norm->values_changed();
}

void ScbertNetwork::parameters_updated() {
  for (Linear* linear : linears()) linear->parameters_updated();
  for (LayerNorm* norm : norms())
    if (norm->trainable()) norm->values_changed();
  if (token_site_ != nullptr) token_site_->parameters_updated();
}

void ScbertNetwork::set_precision(DType product) {
  product_ = product;
  for (PerformerLayer& layer : layers_)
    for (Linear* linear : layer.linears()) linear->set_precision(product);
}

}  // namespace scgraft
