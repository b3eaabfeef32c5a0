// SPDX-License-Identifier: Apache-2.0
#include "model/geneformer/network.h"

#include <cmath>

#include "kernels/add.h"
#include "kernels/row_dropout.h"
#include "model/tables.h"

namespace scgraft {
namespace {

LinearSites layer_names() {
  return {.before = "bert.encoder.layer.",
          .projections = {"attention.self.query", "attention.self.key", "attention.self.value",
                          "attention.output.dense", "intermediate.dense", "output.dense"}};
}

}  // namespace

GeneformerNetwork::GeneformerNetwork(const GeneformerConfig& config, Heads heads,
                                     const ParameterSource& source)
    : LayeredBackbone(layer_names()), config_(config) {
  const int64_t d = config_.dim;
  const double eps = config_.norm_eps;
  const ParameterMaker make(parameters_, source);
  const std::string embeddings = "bert.embeddings.";
  words_table_ = &make.parameter(embeddings + "word_embeddings.weight", {config_.vocab, d});
  positions_table_ =
      &make.parameter(embeddings + "position_embeddings.weight", {config_.positions, d});
  types_table_ = &make.parameter(embeddings + "token_type_embeddings.weight", {config_.types, d});
  norm_ = make.norm(embeddings + "LayerNorm", d, eps);
  for (int i = 0; i < config_.layers; ++i) {
    const std::string name = cat("bert.encoder.layer.", i, ".");
    EncoderLayer layer;
    layer.index = i;
    layer.heads = config_.heads;
    layer.dropout = static_cast<float>(config_.dropout);
    layer.attention_dropout = static_cast<float>(config_.attention_dropout);
    layer.q = make.linear(name + "attention.self.query", d, d);
    layer.k = make.linear(name + "attention.self.key", d, d);
    layer.v = make.linear(name + "attention.self.value", d, d);
    layer.out = make.linear(name + "attention.output.dense", d, d);
    layer.norm1 = make.norm(name + "attention.output.LayerNorm", d, eps);
    layer.ffn_in = make.linear(name + "intermediate.dense", d, config_.ffn);
    layer.ffn_out = make.linear(name + "output.dense", config_.ffn, d);
    layer.norm2 = make.norm(name + "output.LayerNorm", d, eps);
    encoder_.layers.push_back(std::move(layer));
  }
  if (heads.words) {
    words_.emplace();
    words_->dense = make.linear("cls.predictions.transform.dense", d, d);
    words_->norm = make.norm("cls.predictions.transform.LayerNorm", d, eps);
    words_->decoder =
        Linear(words_table_, &make.parameter("cls.predictions.bias", {config_.vocab}));
  }
  if (heads.pooler) pooler_.emplace(Pooler{make.linear("bert.pooler.dense", d, d)});
  if (heads.classes > 0) classifier_.emplace(make.linear("classifier", d, heads.classes));
}

std::vector<Parameter*> GeneformerNetwork::encoder_parameters() {
  std::vector<Parameter*> all;
  for (Parameter* p : parameters_.all())
    if (p->name.starts_with("bert.embeddings.") || p->name.starts_with("bert.encoder."))
      all.push_back(p);
  return all;
}

bool GeneformerNetwork::tables_trainable() const {
  return words_table_->trainable() || positions_table_->trainable() || types_table_->trainable() ||
         norm_.trainable();
}

Dropout GeneformerNetwork::front_dropout(bool training) const {
  return {.p = training ? static_cast<float>(config_.dropout) : 0.0f,
          .site = dropout_site(encoder_.size(), DropoutSlot::attention)};
}

void GeneformerNetwork::front_forward(Context& ctx, const TokenBatch& batch,
                                      const EncodeOptions& options, TensorView x) {
  const int64_t d = config_.dim;
  const DType stored = words_table_->value.dtype();
  Arena& keep = ctx.activations();
  for (const int32_t id : batch.host_unique_genes())
    require(id >= 0 && id < config_.vocab, "geneformer: token id ", id,
            " is outside the vocabulary of ", config_.vocab);
  ranks_.host.clear();
  const KeyValueSite* first = encoder_.layers.front().keys_values;
  const int64_t past = first != nullptr ? first->rows().rows() : 0;
  for (const float rank : batch.host_unique_values()) {
    require<DataError>(
        rank >= 0 && rank < static_cast<float>(config_.positions - past) &&
            rank == std::floor(rank),
        "geneformer: a cell has a token of rank ", rank, ", this model has ", config_.positions,
        " positions", past > 0 ? cat(", the first ", past, " of them for the adapter's keys") : "");
    ranks_.host.push_back(static_cast<int32_t>(rank + static_cast<float>(past)));
  }
  types_.host.assign(ranks_.host.size(), 0);
  rank_memory_.send(ctx, ranks_, types_);

  // Rows of the distinct words and ranks of the batch; the norm is of their sum, token by token.
  const TensorView words = keep.take({batch.unique_genes().numel(), d}, stored);
  const TensorView ranks = keep.take({static_cast<int64_t>(ranks_.host.size()), d}, stored);
  embedding_sum(ctx, std::as_const(words_table_->value).view(), batch.unique_genes(), {}, {}, {},
                batch.gene_rows(), words);
  embedding_sum(ctx, std::as_const(positions_table_->value).view(), ranks_.view(),
                std::as_const(types_table_->value).view(), types_.view(), {}, batch.value_rows(),
                ranks);
  const Packing packing = batch.packing();
  const bool save = options.save && tables_trainable();
  const Dropout dropout = front_dropout(options.training);
  Arena::Scope scratch(ctx.scratch());
  const TensorView sum = ctx.scratch().take(x.shape(), x.dtype());
  embedding_sum(ctx, in_type(ctx, words, x.dtype()), batch.gene_index(),
                in_type(ctx, ranks, x.dtype()), batch.value_index(), {}, packing, sum);
  // The backward pass of the norm reads its result, which dropout would change.
  const TensorView tokens = token_site_ != nullptr ? keep.take(x.shape(), x.dtype()) : x;
  const TensorView normed = save && dropout.active() ? keep.take(x.shape(), x.dtype()) : tokens;
  norm_.forward(ctx, sum, {}, {}, nullptr, normed, save ? &norm_saved_ : nullptr);
  row_dropout(ctx, normed, dropout, &packing, tokens);
  if (token_site_ != nullptr) token_site_->forward(ctx, tokens, packing, options.save, x);
  if (options.tap != nullptr) {
    Arena::Scope activations(keep);
    (*options.tap)("embeddings", in_type(ctx, x, stored));
  }
}

void GeneformerNetwork::encode(Context& ctx, const TokenBatch& batch, const EncodeOptions& options,
                               TensorView out) {
  const Packing packing = batch.packing();
  const Packing rows = options.rows == LayerRows::cls ? batch.cell_rows() : packing;
  require(out.shape() == (Shape{rows.tokens(), config_.dim}) ||
              (out.empty() && !options.before_last.empty() && !options.save),
          "geneformer: the result must be ", Shape{rows.tokens(), config_.dim}, ", got ",
          out.shape());
  const bool front = tables_trainable() || token_site_trainable();
  const int frontier = front ? -1 : encoder_.frontier();
  const TensorView x = ctx.activations().take(
      {packing.tokens(), config_.dim}, activation_type(ctx, words_table_->value.dtype(), product_));
  front_forward(ctx, batch, options, x);
  encoder_.forward(ctx, x, packing, rows, options, options.save ? frontier : encoder_.size(), out);
}

void GeneformerNetwork::encode_backward(Context& ctx, const TokenBatch& batch,
                                        const EncodeOptions& options, TensorView dout) {
  const Packing packing = batch.packing();
  const Packing rows = options.rows == LayerRows::cls ? batch.cell_rows() : packing;
  Arena::Scope gradients(ctx.activations());
  const TensorView dx = encoder_.backward(ctx, packing, rows, options, dout);
  if (!dx.empty()) front_backward(ctx, batch, options, dx);
}

void GeneformerNetwork::front_backward(Context& ctx, const TokenBatch& batch,
                                       const EncodeOptions& options, TensorView dx) {
  const int64_t d = config_.dim;
  const DType stored = words_table_->value.dtype();
  const Packing packing = batch.packing();
  Arena::Scope scratch(ctx.scratch());
  if (token_site_ != nullptr) {
    TensorView below;
    if (tables_trainable()) below = scratch.take(dx.shape(), dx.dtype());
    token_site_->backward(ctx, dx, packing, below);
    dx = below;
  }
  if (!tables_trainable()) return;
  row_dropout(ctx, dx, front_dropout(options.training), &packing, dx);
  norm_.backward(ctx, norm_saved_, dx, {}, &packing, dx, {});
  if (words_table_->trainable()) {
    const TensorView dwords = scratch.take({batch.unique_genes().numel(), d}, stored);
    table_gradient(ctx, dx, batch.gene_uses(), {}, packing, dwords);
    add_rows(ctx, dwords, batch.unique_genes(), words_table_->grad.view());
  }
  if (positions_table_->trainable() || types_table_->trainable()) {
    const TensorView dranks = scratch.take({static_cast<int64_t>(ranks_.host.size()), d}, stored);
    table_gradient(ctx, dx, batch.value_uses(), {}, packing, dranks);
    if (positions_table_->trainable())
      add_rows(ctx, dranks, ranks_.view(), positions_table_->grad.view());
    if (types_table_->trainable())
      linear_backward_weight(ctx, dranks, dranks, batch.value_rows(), {},
                             types_table_->grad.view().rows(0, 1).reshape({d}));
  }
}

std::vector<Linear*> GeneformerNetwork::linears() {
  std::vector<Linear*> all = encoder_.linears();
  if (words_)
    for (Linear* linear : {&words_->dense, &words_->decoder}) all.push_back(linear);
  if (pooler_) all.push_back(&pooler_->dense);
  if (classifier_) all.push_back(&*classifier_);
  return all;
}

std::vector<LayerNorm*> GeneformerNetwork::norms() {
  std::vector<LayerNorm*> all = encoder_.norms();
  all.push_back(&norm_);
  if (words_) all.push_back(&words_->norm);
  return all;
}

ParameterSource geneformer_initialiser(uint64_t seed, DType dtype) {
  return [seed, dtype](const std::string& name, const Shape& shape) {
    Parameter p{name, Tensor(shape, dtype), {}};
    if (name.find("LayerNorm") != std::string::npos)
      fill(p, name.ends_with(".weight") ? 1.0 : 0.0);
    else if (shape.rank() == 1)
      fill(p, 0.0);
    else  // a uniform distribution of the original's standard deviation, 0.02
      initialise_uniform(p, 0.02 * std::sqrt(3.0), seed);
    return std::move(p.value);
  };
}

}  // namespace scgraft
