// SPDX-License-Identifier: Apache-2.0
#include "model/scgpt/network.h"

#include <cmath>

#include "model/tables.h"

namespace scgraft {
namespace {

constexpr int64_t kQueryWidth = 64;  // of the small networks of QueryMvc

// What non-flash checkpoints call the projections of a layer.
LinearSites layer_names() {
  return {.before = "transformer_encoder.layers.",
          .projections = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                          "self_attn.out_proj", "linear1", "linear2"}};
}

EncoderLayer make_layer(const ParameterMaker& make, const ScgptConfig& config, int index) {
  const int64_t d = config.dim;
  const std::string name = cat("transformer_encoder.layers.", index, ".");
  EncoderLayer layer;
  layer.index = index;
  layer.heads = config.heads;
  layer.pre_norm = config.pre_norm;
  layer.dropout = layer.attention_dropout = static_cast<float>(config.dropout);
  Parameter& weight = make.parameter(name + "self_attn.in_proj_weight", {3 * d, d});
  Parameter& bias = make.parameter(name + "self_attn.in_proj_bias", {3 * d});
  layer.q = Linear(&weight, &bias, 0, d);
  layer.k = Linear(&weight, &bias, d, 2 * d);
  layer.v = Linear(&weight, &bias, 2 * d, 3 * d);
  layer.out = make.linear(name + "self_attn.out_proj", d, d);
  layer.ffn_in = make.linear(name + "linear1", d, config.ffn);
  layer.ffn_out = make.linear(name + "linear2", config.ffn, d);
  layer.norm1 = make.norm(name + "norm1", d);
  layer.norm2 = make.norm(name + "norm2", d);
  return layer;
}

// in: width of what it reads.
ExpressionDecoder make_decoder(const ParameterMaker& make, const std::string& name, int64_t in,
                               int64_t dim) {
  return {.fc0 = make.linear(name + ".0", in, dim),
          .fc2 = make.linear(name + ".2", dim, dim),
          .fc4 = make.linear(name + ".4", dim, 1)};
}

QueryMvc make_query_mvc(const ParameterMaker& make, MvcStyle style, int64_t dim) {
  QueryMvc head;
  head.concat = style == MvcStyle::concat_query;
  head.gene2query = make.linear("mvc_decoder.gene2query", dim, head.concat ? kQueryWidth : dim);
  head.fc1 = make.linear("mvc_decoder.fc1", head.concat ? dim + kQueryWidth : dim, kQueryWidth);
  head.between.slope = &make.parameter("mvc_decoder.hidden_activation.weight", {1});
  head.fc2 = make.linear("mvc_decoder.fc2", kQueryWidth, 1);
  return head;
}

Classifier make_classifier(const ParameterMaker& make, const std::string& name, int64_t dim,
                           int64_t linears, int64_t classes, Activation between) {
  Classifier head;
  head.between = between;
  for (int64_t j = 0; j + 1 < linears; ++j) {
    head.hidden.push_back(make.linear(cat(name, "._decoder.", 3 * j), dim, dim));
    head.norms.push_back(make.norm(cat(name, "._decoder.", 3 * j + 2), dim));
  }
  head.out = make.linear(name + ".out_layer", dim, classes);
  return head;
}

}  // namespace

ScgptNetwork::ScgptNetwork(const ScgptConfig& config, Heads heads, const ParameterSource& source)
    : LayeredBackbone(layer_names()), config_(config) {
  // Buffers change in training: they are not shared with a file.
  const ParameterSource copies = [&](const std::string& name, const Shape& shape) {
    return source(name, shape).clone();
  };
  const ParameterMaker make(parameters_, source);
  const ParameterMaker buffers(buffers_, copies);
  const Dropout dropout{
      .p = static_cast<float>(config.dropout),
      .site = dropout_site(static_cast<int>(config.layers), DropoutSlot::attention)};
  front_.emplace(config, dropout, make, buffers);
  for (int i = 0; i < config.layers; ++i) encoder_.layers.push_back(make_layer(make, config, i));
  make_heads(heads, make);
}

void ScgptNetwork::make_heads(Heads heads, const ParameterMaker& make) {
  const int64_t d = config_.dim;
  if (config_.batches > 0) batch_encoder_.emplace(make, config_.batches, d);
  const int64_t wide = config_.batches > 0 ? 2 * d : d;  // with the batch label beside
  if (heads.decoder && config_.flags > 0) {
    affine_.emplace();
    affine_->coefficient = make_decoder(make, "decoder.coeff_decoder.fc", wide, d);
    affine_->bias = make_decoder(make, "decoder.bias_decoder.fc", wide, d);
  } else if (heads.decoder) {
    decoder_ = make_decoder(make, "decoder.fc", wide, d);
    if (heads.zeros) zero_decoder_ = make_decoder(make, "decoder.zero_logit", wide, d);
  }
  if (heads.mvc && config_.mvc_style == MvcStyle::inner_product) {
    mvc_.emplace();
    mvc_->gene2query = make.linear("mvc_decoder.gene2query", d, d);
    mvc_->w = make.linear("mvc_decoder.W", d, wide, false);
    if (heads.zeros) mvc_->w_zero = make.linear("mvc_decoder.W_zero_logit", d, wide);
  } else if (heads.mvc) {
    query_mvc_ = make_query_mvc(make, config_.mvc_style, d);
  }
  if (heads.classes > 0)
    classifier_ = make_classifier(make, "cls_decoder", d, config_.cls_layers, heads.classes,
                                  Activation::relu);
  if (heads.adversary > 0)
    adversary_ = make_classifier(make, "grad_reverse_discriminator", d, config_.adversary_layers,
                                 heads.adversary, Activation::leaky_relu);
}

std::vector<Parameter*> ScgptNetwork::encoder_parameters() {
  std::vector<Parameter*> all;
  for (Parameter* p : parameters_.all())
    for (const char* part :
         {"encoder.", "value_encoder.", "pert_encoder.", "bn.", "dsbn.", "transformer_encoder."})
      if (p->name.starts_with(part)) all.push_back(p);
  return all;
}

void ScgptNetwork::encode(Context& ctx, const TokenBatch& batch, const EncodeOptions& options,
                          TensorView out) {
  const int64_t d = config_.dim;
  const DType type = activation_type(ctx, front_->dtype(), product_);
  const Packing packing = batch.packing();
  const Packing rows = options.rows == LayerRows::cls ? batch.cell_rows() : packing;
  require(out.shape() == (Shape{rows.tokens(), d}), "scgpt: the result must be ",
          Shape{rows.tokens(), d}, ", got ", out.shape());
  const int frontier = front_->trainable() ? -1 : encoder_.frontier();
  const TensorView x = ctx.activations().take({packing.tokens(), d}, type);
  front_->forward(ctx, batch, options, x);
  if (batch_encoder_) batch_encoder_->forward(ctx, batch, options.batches, options.save);
  encoder_.forward(ctx, x, packing, rows, options, options.save ? frontier : encoder_.size(), out);
}

void ScgptNetwork::encode_backward(Context& ctx, const TokenBatch& batch,
                                   const EncodeOptions& options, TensorView dout) {
  const Packing packing = batch.packing();
  const Packing rows = options.rows == LayerRows::cls ? batch.cell_rows() : packing;
  Arena::Scope gradients(ctx.activations());
  const TensorView dx = encoder_.backward(ctx, packing, rows, options, dout);
  if (!dx.empty()) front_->backward(ctx, batch, options, dx);
}

std::vector<Linear*> ScgptNetwork::linears() {
  std::vector<Linear*> all = front_->linears();
  for (Linear* linear : encoder_.linears()) all.push_back(linear);
  const auto add_decoder = [&](ExpressionDecoder& head) {
    for (Linear* linear : {&head.fc0, &head.fc2, &head.fc4}) all.push_back(linear);
  };
  const auto add_classifier = [&](Classifier& head) {
    for (Linear& linear : head.hidden) all.push_back(&linear);
    all.push_back(&head.out);
  };
  if (decoder_) add_decoder(*decoder_);
  if (zero_decoder_) add_decoder(*zero_decoder_);
  if (affine_) {
    add_decoder(affine_->coefficient);
    add_decoder(affine_->bias);
  }
  if (mvc_) {
    for (Linear* linear : {&mvc_->gene2query, &mvc_->w}) all.push_back(linear);
    if (mvc_->w_zero) all.push_back(&*mvc_->w_zero);
  }
  if (query_mvc_)
    for (Linear* linear : {&query_mvc_->gene2query, &query_mvc_->fc1, &query_mvc_->fc2})
      all.push_back(linear);
  if (classifier_) add_classifier(*classifier_);
  if (adversary_) add_classifier(*adversary_);
  return all;
}

std::vector<LayerNorm*> ScgptNetwork::norms() {
  std::vector<LayerNorm*> all = front_->norms();
  for (LayerNorm* norm : encoder_.norms()) all.push_back(norm);
  if (batch_encoder_) all.push_back(&batch_encoder_->norm());
  for (std::optional<Classifier>* head : {&classifier_, &adversary_})
    if (*head)
      for (LayerNorm& norm : (*head)->norms) all.push_back(&norm);
  return all;
}

std::vector<Parameter*> ScgptNetwork::moving() {
  std::vector<Parameter*> moving = parameters_.all();
  for (Parameter* p : buffers_.all())
    if (p->value.dtype() != DType::i64) moving.push_back(p);  // counts stay with the host
  return moving;
}

ParameterSource scgpt_initialiser(uint64_t seed, DType dtype) {
  return [seed, dtype](const std::string& name, const Shape& shape) {
    if (name.ends_with(".num_batches_tracked")) return Tensor(shape, DType::i64);
    Parameter p{name, Tensor(shape, dtype), {}};
    const bool norm = name.find("norm") != std::string::npos || name.starts_with("bn.") ||
                      name.starts_with("dsbn.") ||
                      (name.find("._decoder.") != std::string::npos && shape.rank() == 1 &&
                       (name[name.find_last_of('.') - 1] - '0') % 3 == 2);
    if (norm) {
      fill(p, name.ends_with(".weight") || name.ends_with(".running_var") ? 1.0 : 0.0);
    } else if (name == "mvc_decoder.hidden_activation.weight") {
      fill(p, 0.25);  // of torch.nn.PReLU
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
