// SPDX-License-Identifier: Apache-2.0
#include "model/scgpt/network.h"

#include <algorithm>
#include <cmath>

#include "kernels/activation.h"
#include "kernels/add.h"
#include "model/tables.h"

namespace scgraft {
namespace {

constexpr double kLargestValue = 512;  // the value encoder clamps above, not below
// What non-flash checkpoints call the projections of a layer.
LinearSites layer_names() {
  return {.before = "transformer_encoder.layers.",
          .projections = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                          "self_attn.out_proj", "linear1", "linear2"}};
}

}  // namespace

ScgptNetwork::ScgptNetwork(const ScgptConfig& config, Heads heads, const ParameterSource& source)
    : config_(config), encoder_(layer_names()) {
  const int64_t d = config_.dim;
  const ParameterMaker make(parameters_, source);
  embedding_ = &make.parameter("encoder.embedding.weight", {config_.vocab, d});
  gene_norm_ = make.norm("encoder.enc_norm", d);
  value1_ = make.linear("value_encoder.linear1", 1, d);
  value2_ = make.linear("value_encoder.linear2", d, d);
  value_norm_ = make.norm("value_encoder.norm", d);
  for (int i = 0; i < config_.layers; ++i) {
    const std::string name = cat("transformer_encoder.layers.", i, ".");
    EncoderLayer layer;
    layer.index = i;
    layer.heads = config_.heads;
    layer.dropout = layer.attention_dropout = static_cast<float>(config_.dropout);
    Parameter& weight = make.parameter(name + "self_attn.in_proj_weight", {3 * d, d});
    Parameter& bias = make.parameter(name + "self_attn.in_proj_bias", {3 * d});
    layer.q = Linear(&weight, &bias, 0, d);
    layer.k = Linear(&weight, &bias, d, 2 * d);
    layer.v = Linear(&weight, &bias, 2 * d, 3 * d);
    layer.out = make.linear(name + "self_attn.out_proj", d, d);
    layer.ffn_in = make.linear(name + "linear1", d, config_.ffn);
    layer.ffn_out = make.linear(name + "linear2", config_.ffn, d);
    layer.norm1 = make.norm(name + "norm1", d);
    layer.norm2 = make.norm(name + "norm2", d);
    encoder_.layers.push_back(std::move(layer));
  }
  if (heads.decoder) {
    decoder_.emplace();
    decoder_->fc0 = make.linear("decoder.fc.0", d, d);
    decoder_->fc2 = make.linear("decoder.fc.2", d, d);
    decoder_->fc4 = make.linear("decoder.fc.4", d, 1);
  }
  if (heads.mvc) {
    mvc_.emplace();
    mvc_->gene2query = make.linear("mvc_decoder.gene2query", d, d);
    mvc_->w = make.linear("mvc_decoder.W", d, d, false);
  }
  if (heads.classes > 0) {
    classifier_.emplace();
    for (int64_t j = 0; j + 1 < config_.cls_layers; ++j) {
      classifier_->hidden.push_back(make.linear(cat("cls_decoder._decoder.", 3 * j), d, d));
      classifier_->norms.push_back(make.norm(cat("cls_decoder._decoder.", 3 * j + 2), d));
    }
    classifier_->out = make.linear("cls_decoder.out_layer", d, heads.classes);
  }
}

std::vector<Parameter*> ScgptNetwork::encoder_parameters() {
  std::vector<Parameter*> all;
  for (Parameter* p : parameters_.all())
    if (p->name.starts_with("encoder.") || p->name.starts_with("value_encoder.") ||
        p->name.starts_with("transformer_encoder."))
      all.push_back(p);
  return all;
}

bool ScgptNetwork::gene_encoder_trainable() const {
  return embedding_->trainable() || gene_norm_.trainable();
}
bool ScgptNetwork::value_encoder_trainable() const {
  return value1_.trainable() || value2_.trainable() || value_norm_.trainable();
}

Dropout ScgptNetwork::value_dropout(bool training) const {
  return {.p = training ? static_cast<float>(config_.dropout) : 0.0f,
          .site = dropout_site(encoder_.size(), DropoutSlot::attention)};
}

std::vector<std::string> ScgptNetwork::hidden_sites() const {
  std::vector<std::string> names = encoder_.hidden_sites();
  names.insert(names.begin(), "tokens");
  return names;
}

void ScgptNetwork::front_forward(Context& ctx, const TokenBatch& batch,
                                 const EncodeOptions& options, bool save, TensorView x) {
  const int64_t d = config_.dim;
  const DType type = embedding_->value.dtype();
  Arena& keep = ctx.activations();
  front_ = Front{};

  const ConstTensorView genes = batch.unique_genes();
  const TensorView rows = keep.take({genes.numel(), d}, type);
  const TensorView gene = keep.take({genes.numel(), d}, type);
  for (const int32_t id : batch.host_unique_genes())
    require(id >= 0 && id < config_.vocab, "scgpt: token id ", id, " is outside the vocabulary of ",
            config_.vocab);
  embedding_sum(ctx, std::as_const(embedding_->value).view(), genes, {}, {}, {}, batch.gene_rows(),
                rows);
  gene_norm_.forward(ctx, rows, {}, {}, nullptr, gene,
                     save && gene_encoder_trainable() ? &front_.gene_norm : nullptr);
  front_.gene = gene;

  const std::span<const float> values = batch.host_unique_values();
  const auto n = static_cast<int64_t>(values.size());
  const Packing value_rows = batch.value_rows();
  // A few dozen numbers, clamped where the batch was made.
  const TensorView v = keep.take({n, 1}, type);
  const auto clamp = [&]<class T>(T* to) {
    std::transform(values.begin(), values.end(), to, [](float value) {
      return static_cast<T>(std::min(static_cast<double>(value), kLargestValue));
    });
  };
  if (ctx.device().is_cpu()) {
    visit_real(type, [&]<class T>(Type<T>) { clamp(v.as<T>()); });
  } else {
    require<TypeError>(type == DType::f32, "scgpt: on a GPU the value encoder is f32, got ", type);
    clamped_.host.resize(values.size());
    clamp(clamped_.host.data());
    clamped_memory_.send(ctx, clamped_);
    copy(ctx, clamped_.view().reshape({n, 1}), v);
  }
  const TensorView hidden = keep.take({n, d}, type);
  const TensorView projected = keep.take({n, d}, type);
  const TensorView value = keep.take({n, d}, type);
  value1_.forward(ctx, v, value_rows, options.training, hidden);
  activation(ctx, Activation::relu, hidden, hidden);
  value2_.forward(ctx, hidden, value_rows, options.training, projected);
  value_norm_.forward(ctx, projected, {}, {}, nullptr, value,
                      save && value_encoder_trainable() ? &front_.value_norm : nullptr);
  front_.value_in = v;
  front_.value_hidden = hidden;
  TensorView adapted = value;
  if (token_site_ != nullptr) {
    adapted = keep.take({n, d}, type);
    token_site_->forward(ctx, value, value_rows, save, adapted);
  }

  // The tables are as small as the vocabulary of the batch; what is gathered from them is not.
  const ConstTensorView gene_table = in_type(ctx, gene, x.dtype());
  const ConstTensorView value_table = in_type(ctx, adapted, x.dtype());
  embedding_sum(ctx, gene_table, batch.gene_index(), value_table, batch.value_index(),
                value_dropout(options.training), batch.packing(), x);
  if (options.tap != nullptr) {
    Arena::Scope scratch(ctx.scratch());
    const TensorView tokens = scratch.take({batch.tokens(), d}, type);
    embedding_sum(ctx, gene, batch.gene_index(), {}, {}, {}, batch.packing(), tokens);
    (*options.tap)("gene_emb", tokens);
    embedding_sum(ctx, adapted, batch.value_index(), {}, {}, {}, batch.packing(), tokens);
    (*options.tap)("value_emb", tokens);
  }
}

void ScgptNetwork::encode(Context& ctx, const TokenBatch& batch, const EncodeOptions& options,
                          TensorView out) {
  const int64_t d = config_.dim;
  const DType type = activation_type(ctx, embedding_->value.dtype(), product_);
  const Packing packing = batch.packing();
  const Packing rows = options.rows == LayerRows::cls ? batch.cell_rows() : packing;
  require(out.shape() == (Shape{rows.tokens(), d}), "scgpt: the result must be ",
          Shape{rows.tokens(), d}, ", got ", out.shape());
  const bool front =
      gene_encoder_trainable() || value_encoder_trainable() || token_site_trainable();
  const int frontier = front ? -1 : encoder_.frontier();
  const TensorView x = ctx.activations().take({packing.tokens(), d}, type);
  front_forward(ctx, batch, options, options.save, x);
  encoder_.forward(ctx, x, packing, rows, options, options.save ? frontier : encoder_.size(), out);
}

void ScgptNetwork::add_gene_gradient(Context& ctx, ConstTensorView dgene) {
  if (!gene_encoder_trainable()) return;
  front_.dgene = ctx.activations().take(dgene.shape(), dgene.dtype());
  copy(ctx, dgene, front_.dgene);
}

void ScgptNetwork::encode_backward(Context& ctx, const TokenBatch& batch,
                                   const EncodeOptions& options, TensorView dout) {
  const Packing packing = batch.packing();
  const Packing rows = options.rows == LayerRows::cls ? batch.cell_rows() : packing;
  Arena::Scope gradients(ctx.activations());
  const TensorView dx = encoder_.backward(ctx, packing, rows, options, dout);
  if (!dx.empty()) front_backward(ctx, batch, options, dx);
}

void ScgptNetwork::front_backward(Context& ctx, const TokenBatch& batch,
                                  const EncodeOptions& options, ConstTensorView dx) {
  const int64_t d = config_.dim;
  const DType type = embedding_->value.dtype();
  const Packing packing = batch.packing();
  Arena::Scope scratch(ctx.scratch());
  if (gene_encoder_trainable()) {
    const int64_t n = batch.unique_genes().numel();
    const TensorView dgene = scratch.take({n, d}, type);
    table_gradient(ctx, dx, batch.gene_uses(), {}, packing, dgene);
    if (!front_.dgene.empty()) add(ctx, dgene, front_.dgene, dgene);
    gene_norm_.backward(ctx, front_.gene_norm, dgene, {}, nullptr, dgene, {});
    if (embedding_->trainable())
      add_rows(ctx, dgene, batch.unique_genes(), embedding_->grad.view());
  }
  const bool to_encoder = value_encoder_trainable();
  if (to_encoder || token_site_trainable()) {
    const int64_t n = batch.unique_values().numel();
    const Packing rows = batch.value_rows();
    TensorView dvalue = scratch.take({n, d}, type);
    table_gradient(ctx, dx, batch.value_uses(), value_dropout(options.training), packing, dvalue);
    if (token_site_ != nullptr) {
      TensorView below;
      if (to_encoder) below = scratch.take({n, d}, type);
      token_site_->backward(ctx, dvalue, rows, below);
      dvalue = below;
    }
    if (!to_encoder) return;
    value_norm_.backward(ctx, front_.value_norm, dvalue, {}, nullptr, dvalue, {});
    const TensorView dhidden = scratch.take({n, d}, type);
    value2_.backward(ctx, front_.value_hidden, dvalue, rows, options.training, false, dhidden);
    activation_backward(ctx, Activation::relu, front_.value_hidden, dhidden, dhidden);
    value1_.backward(ctx, front_.value_in, dhidden, rows, options.training, false, {});
  }
}

std::vector<Linear*> ScgptNetwork::linears() {
  std::vector<Linear*> all = {&value1_, &value2_};
  for (Linear* linear : encoder_.linears()) all.push_back(linear);
  if (decoder_)
    for (Linear* linear : {&decoder_->fc0, &decoder_->fc2, &decoder_->fc4}) all.push_back(linear);
  if (mvc_)
    for (Linear* linear : {&mvc_->gene2query, &mvc_->w}) all.push_back(linear);
  if (classifier_) {
    for (Linear& linear : classifier_->hidden) all.push_back(&linear);
    all.push_back(&classifier_->out);
  }
  return all;
}

std::vector<LayerNorm*> ScgptNetwork::norms() {
  std::vector<LayerNorm*> all = {&gene_norm_, &value_norm_};
  for (LayerNorm* norm : encoder_.norms()) all.push_back(norm);
  if (classifier_)
    for (LayerNorm& norm : classifier_->norms) all.push_back(&norm);
  return all;
}

void ScgptNetwork::move_to(Device device) {
  if (!scgraft::move_to(parameters_.all(), device)) return;
  for (Linear* linear : linears()) linear->weight_changed();
  for (LayerNorm* norm : norms()) norm->values_changed();
}

void ScgptNetwork::parameters_updated() {
  for (Linear* linear : linears()) linear->parameters_updated();
  for (LayerNorm* norm : norms())
    if (norm->trainable()) norm->values_changed();
  for (HiddenSite* site : encoder_.attached()) site->parameters_updated();
  if (token_site_ != nullptr) token_site_->parameters_updated();
}

void ScgptNetwork::set_precision(DType product) {
  product_ = product;
  encoder_.set_precision(product);
}

ParameterSource scgpt_initialiser(uint64_t seed, DType dtype) {
  return [seed, dtype](const std::string& name, const Shape& shape) {
    Parameter p{name, Tensor(shape, dtype), {}};
    const bool norm = name.find("norm") != std::string::npos ||
                      (name.starts_with("cls_decoder._decoder.") && shape.rank() == 1 &&
                       (name[name.find_last_of('.') - 1] - '0') % 3 == 2);
    if (norm) {
      fill(p, name.ends_with(".weight") ? 1.0 : 0.0);
    } else if (name == "encoder.embedding.weight") {
      initialise_uniform(p, 0.1, seed);
    } else if (name.ends_with("in_proj_weight")) {
      initialise_uniform(p, std::sqrt(6.0 / static_cast<double>(shape[0] + shape[1])), seed);
    } else if (name.find("self_attn") != std::string::npos && name.ends_with("bias")) {
      fill(p, 0.0);
    } else {
      // torch.nn.Linear: weight and bias within 1/sqrt(fan_in); a bias uses its own width, which is
      // the fan-in of every square layer here.
      const int64_t fan_in = shape.rank() == 2 ? shape[1] : shape[0];
      initialise_uniform(p, 1.0 / std::sqrt(static_cast<double>(fan_in)), seed);
    }
    return std::move(p.value);
  };
}

}  // namespace scgraft
