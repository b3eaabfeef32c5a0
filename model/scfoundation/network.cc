// SPDX-License-Identifier: Apache-2.0
#include "model/scfoundation/network.h"

#include <algorithm>
#include <numeric>

#include "kernels/add.h"
#include "kernels/cast.h"
#include "model/tables.h"

namespace scgraft {
namespace {

constexpr int64_t kHeadWidth = 256;

LinearSites layer_names() {
  return {.before = "encoder.transformer_encoder.",
          .projections = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                          "self_attn.out_proj", "linear1", "linear2"}};
}

void to_type(Context& ctx, ConstTensorView from, TensorView to) {
  if (from.dtype() == to.dtype())
    copy(ctx, from, to);
  else
    cast(ctx, from, to);
}

}  // namespace

ScfoundationNetwork::ScfoundationNetwork(const ScfoundationConfig& config, int64_t features,
                                         const ParameterSource& source, int64_t classes)
    : LayeredBackbone(layer_names()), config_(config) {
  const int64_t d = config_.dim;
  const ParameterMaker make(parameters_, source);
  values_.emplace(make, ValueEmbedding::Sizes{.bins = config_.bins,
                                              .dim = d,
                                              .alpha = config_.bin_alpha,
                                              .pad = static_cast<float>(config_.pad_value),
                                              .mask = static_cast<float>(config_.mask_value)});
  places_ = &make.parameter("pos_emb.weight", {config_.positions + 1, d});
  for (int i = 0; i < config_.layers; ++i) {
    const std::string name = cat("encoder.transformer_encoder.", i, ".");
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
    layer.ffn_in = make.linear(name + "linear1", d, config_.ffn());
    layer.ffn_out = make.linear(name + "linear2", config_.ffn(), d);
    layer.norm1 = make.norm(name + "norm1", d);
    layer.norm2 = make.norm(name + "norm2", d);
    encoder_.layers.push_back(std::move(layer));
  }
  norm_ = make.norm("encoder.norm", d);
  if (features > 0) decoder_.emplace(make, config_, features);
  if (classes > 0)
    classifier_ = {.hidden = make.linear("fc1.0", PartsClassifier::kParts * d, kHeadWidth),
                   .out = make.linear("fc1.2", kHeadWidth, classes)};
}

std::vector<Parameter*> ScfoundationNetwork::encoder_parameters() {
  std::vector<Parameter*> all;
  for (Parameter* p : parameters_.all())
    if (p->name.starts_with("token_emb.") || p->name.starts_with("pos_emb.") ||
        p->name.starts_with("encoder."))
      all.push_back(p);
  return all;
}

void ScfoundationNetwork::set_stabiliser(FavorStabiliser stabiliser) {
  if (decoder_) decoder_->set_stabiliser(stabiliser);
}

int ScfoundationNetwork::frontier() const {
  return tables_trainable() || token_site_trainable() ? -1 : encoder_.frontier();
}

ConstTensorView ScfoundationNetwork::place_rows(Context& ctx, const TokenBatch& batch, DType type) {
  for (const int32_t id : batch.host_unique_genes())
    require<DataError>(id >= 0 && id <= config_.positions, "scfoundation: a cell has an entry ", id,
                       ", this model has ", config_.positions);
  const TensorView rows =
      ctx.activations().take({batch.unique_genes().numel(), config_.dim}, places_->value.dtype());
  embedding_sum(ctx, std::as_const(places_->value).view(), batch.unique_genes(), {}, {}, {},
                batch.gene_rows(), rows);
  return in_type(ctx, rows, type);
}

void ScfoundationNetwork::front_forward(Context& ctx, const TokenBatch& batch,
                                        const EncodeOptions& options, TensorView x) {
  encoded_.value_rows = values_->forward(ctx, batch, encoded_.values);
  const ConstTensorView places = place_rows(ctx, batch, x.dtype());
  const TensorView sum = token_site_ != nullptr ? ctx.activations().take(x.shape(), x.dtype()) : x;
  embedding_sum(ctx, in_type(ctx, encoded_.value_rows, x.dtype()), batch.value_index(), places,
                batch.gene_index(), {}, batch.packing(), sum);
  if (token_site_ != nullptr) token_site_->forward(ctx, sum, batch.packing(), options.save, x);
  if (options.tap == nullptr) return;
  Arena::Scope activations(ctx.activations());
  const TensorView tokens = ctx.activations().take(x.shape(), encoded_.value_rows.dtype());
  embedding_sum(ctx, encoded_.value_rows, batch.value_index(), {}, {}, {}, batch.packing(), tokens);
  (*options.tap)("token_emb", tokens);
}

void ScfoundationNetwork::encode(Context& ctx, const TokenBatch& batch,
                                 const EncodeOptions& options, TensorView out) {
  const Packing packing = batch.packing();
  const Packing rows = options.rows == LayerRows::cls ? batch.cell_rows() : packing;
  const Shape shape{rows.tokens(), config_.dim};
  require(out.shape() == shape, "scfoundation: the result must be ", shape, ", got ", out.shape());
  type_ = activation_type(ctx, places_->value.dtype(), product_);
  first_saved_ = options.save ? frontier() : encoder_.size();
  const TensorView x = ctx.activations().take({packing.tokens(), config_.dim}, type_);
  const TensorView top = ctx.activations().take(shape, out.dtype());
  front_forward(ctx, batch, options, x);
  encoder_.forward(ctx, x, packing, rows, options, first_saved_, top);
  norm_.forward(ctx, top, {}, {}, nullptr, out, options.save ? &norm_saved_ : nullptr);
}

void ScfoundationNetwork::encode_backward(Context& ctx, const TokenBatch& batch,
                                          const EncodeOptions& options, TensorView dout) {
  if (first_saved_ >= encoder_.size() && !norm_.trainable()) return;
  const Packing packing = batch.packing();
  const Packing rows = options.rows == LayerRows::cls ? batch.cell_rows() : packing;
  norm_.backward(ctx, norm_saved_, dout, {}, &rows, dout, {});
  if (first_saved_ >= encoder_.size()) return;
  Arena::Scope gradients(ctx.activations());
  const TensorView dx = encoder_.backward(ctx, packing, rows, options, dout);
  if (!dx.empty()) front_backward(ctx, batch, dx);
}

void ScfoundationNetwork::add_place_gradient(Context& ctx, const TokenBatch& batch,
                                             ConstTensorView dx) {
  if (!places_->trainable()) return;
  Arena::Scope scratch(ctx.scratch());
  const TensorView rows =
      scratch.take({batch.unique_genes().numel(), config_.dim}, places_->value.dtype());
  table_gradient(ctx, dx, batch.gene_uses(), {}, batch.packing(), rows);
  add_rows(ctx, rows, batch.unique_genes(), places_->grad.view());
}

void ScfoundationNetwork::front_backward(Context& ctx, const TokenBatch& batch, TensorView dx) {
  const Packing packing = batch.packing();
  Arena::Scope scratch(ctx.scratch());
  if (token_site_ != nullptr) {
    TensorView below;
    if (tables_trainable()) below = scratch.take(dx.shape(), dx.dtype());
    token_site_->backward(ctx, dx, packing, below);
    dx = below;
  }
  if (!tables_trainable()) return;
  add_place_gradient(ctx, batch, dx);
  if (!values_->trainable()) return;
  const TensorView rows = scratch.take(encoded_.value_rows.shape(), encoded_.value_rows.dtype());
  table_gradient(ctx, dx, batch.value_uses(), {}, packing, rows);
  values_->backward(ctx, batch, encoded_.values, rows);
}

void ScfoundationNetwork::match_entries(Context& ctx, const TokenBatch& batch,
                                        const TokenBatch& whole, bool back) {
  require(batch.cells() == whole.cells(), "scfoundation: ", batch.cells(),
          " cells were encoded, of ", whole.cells(), " all entries are there");
  const Packing tokens = batch.packing(), entries = whole.packing();
  const auto values = static_cast<int32_t>(whole.host_unique_values().size());
  sources_.host.assign(whole.host_value_index().begin(), whole.host_value_index().end());
  std::vector<int32_t> token_of(static_cast<size_t>(config_.positions) + 1);
  for (int64_t cell = 0; cell < tokens.cells(); ++cell) {
    std::fill(token_of.begin(), token_of.end(), -1);
    for (int64_t t = tokens.begin(cell); t < tokens.end(cell); ++t)
      token_of[static_cast<size_t>(batch.host_gene(t))] = static_cast<int32_t>(t);
    token_of.back() = -1;  // padding
    for (int64_t e = entries.begin(cell); e < entries.end(cell); ++e) {
      const int32_t token = token_of[static_cast<size_t>(whole.host_gene(e))];
      if (token >= 0) sources_.host[static_cast<size_t>(e)] = values + token;
    }
  }
  use_offsets_.host.clear();
  use_entries_.host.clear();
  if (back) {  // a counting sort of the entries by what they are
    use_offsets_.host.assign(static_cast<size_t>(values + tokens.tokens()) + 1, 0);
    for (const int32_t source : sources_.host) ++use_offsets_.host[static_cast<size_t>(source) + 1];
    std::partial_sum(use_offsets_.host.begin(), use_offsets_.host.end(), use_offsets_.host.begin());
    std::vector<int32_t> next = use_offsets_.host;
    use_entries_.host.resize(sources_.host.size());
    for (size_t e = 0; e < sources_.host.size(); ++e)
      use_entries_.host[static_cast<size_t>(next[static_cast<size_t>(sources_.host[e])]++)] =
          static_cast<int32_t>(e);
  }
  source_memory_.send(ctx, sources_, use_offsets_, use_entries_);
}

void ScfoundationNetwork::decode(Context& ctx, const TokenBatch& batch, ConstTensorView encoded,
                                 const TokenBatch& whole, const EncodeOptions& options,
                                 TensorView out) {
  require(decoder_.has_value(), "scfoundation: this network has no decoder");
  const Shape rows{batch.tokens(), config_.dim};
  require(encoded.shape() == rows, "scfoundation: encoded rows must be ", rows, ", got ",
          encoded.shape());
  require(out.shape() == (Shape{whole.tokens(), 1}), "scfoundation: predictions must be ",
          Shape{whole.tokens(), 1}, ", got ", out.shape());
  Arena& keep = ctx.activations();
  type_ = activation_type(ctx, places_->value.dtype(), product_);
  const ConstTensorView places = place_rows(ctx, whole, type_);  // looks at the ids
  match_entries(ctx, batch, whole, options.save);
  whole_.value_rows = values_->forward(ctx, whole, whole_.values);
  const int64_t values = whole_.value_rows.dim(0);
  const TensorView sources = keep.take({values + batch.tokens(), config_.dim}, type_);
  to_type(ctx, whole_.value_rows, sources.rows(0, values));
  to_type(ctx, encoded, sources.rows(values, values + batch.tokens()));
  const TensorView x = keep.take({whole.tokens(), config_.dim}, type_);
  embedding_sum(ctx, sources, sources_.view(), places, whole.gene_index(), {}, whole.packing(), x);
  decoder_->forward(ctx, x, whole.packing(), options, trainable_below_decoder(), out);
}

void ScfoundationNetwork::decode_backward(Context& ctx, const TokenBatch& batch,
                                          const TokenBatch& whole, const EncodeOptions& options,
                                          ConstTensorView dout, TensorView dencoded) {
  const int64_t tokens = batch.tokens();
  const bool want_dx = trainable_below_decoder();
  Arena::Scope gradients(ctx.activations());
  TensorView dx;
  if (want_dx) dx = ctx.activations().take({whole.tokens(), config_.dim}, type_);
  decoder_->backward(ctx, whole.packing(), options, dout, dx);
  if (!want_dx) return set_zero(ctx, dencoded);
  add_place_gradient(ctx, whole, dx);
  Arena::Scope scratch(ctx.scratch());
  const int64_t values = whole_.value_rows.dim(0);
  const TensorView dsources =
      scratch.take({values + tokens, config_.dim}, whole_.value_rows.dtype());
  table_gradient(ctx, dx, {use_offsets_.view(), use_entries_.view()}, {}, whole.packing(),
                 dsources);
  to_type(ctx, dsources.rows(values, values + tokens), dencoded);
  if (values_->trainable()) values_->backward(ctx, whole, whole_.values, dsources.rows(0, values));
}

std::vector<Linear*> ScfoundationNetwork::linears() {
  std::vector<Linear*> all = values_->linears();
  for (Linear* linear : encoder_.linears()) all.push_back(linear);
  if (decoder_)
    for (Linear* linear : decoder_->linears()) all.push_back(linear);
  if (classifier_)
    for (Linear* linear : {&classifier_->hidden, &classifier_->out}) all.push_back(linear);
  return all;
}

std::vector<LayerNorm*> ScfoundationNetwork::norms() {
  std::vector<LayerNorm*> all = encoder_.norms();
  all.push_back(&norm_);
  if (decoder_)
    for (LayerNorm* norm : decoder_->norms()) all.push_back(norm);
  return all;
}

void ScfoundationNetwork::move_to(Device device) {
  if (places_->value.device() != device) values_->table_changed();
  LayeredBackbone::move_to(device);
}

void ScfoundationNetwork::parameters_updated() {
  values_->parameters_updated();
  LayeredBackbone::parameters_updated();
}

void ScfoundationNetwork::set_precision(DType product) {
  LayeredBackbone::set_precision(product);
  if (decoder_)
    for (Linear* linear : decoder_->linears()) linear->set_precision(product);
}

}  // namespace scgraft
