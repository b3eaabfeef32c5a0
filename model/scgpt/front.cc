// SPDX-License-Identifier: Apache-2.0
#include "model/scgpt/front.h"

#include "kernels/add.h"
#include "kernels/cast.h"
#include "model/tables.h"

namespace scgraft {
namespace {

constexpr double kBatchNormEps = 6.1e-5;

BatchNorm make_batch_norm(const std::string& name, int64_t dim, bool affine,
                          const ParameterMaker& make, const ParameterMaker& buffers) {
  BatchNorm norm;
  norm.eps = kBatchNormEps;
  if (affine) {
    norm.gamma = &make.parameter(name + ".weight", {dim});
    norm.beta = &make.parameter(name + ".bias", {dim});
  }
  norm.mean = &buffers.parameter(name + ".running_mean", {dim});
  norm.var = &buffers.parameter(name + ".running_var", {dim});
  norm.batches = &buffers.parameter(name + ".num_batches_tracked", {});
  return norm;
}

}  // namespace

ScgptFront::ScgptFront(const ScgptConfig& config, Dropout dropout, const ParameterMaker& make,
                       const ParameterMaker& buffers)
    : config_(config),
      dropout_(dropout),
      genes_(make, config.vocab, config.dim),
      values_(make_value_rows(make, config)) {
  if (config.flags > 0)
    flag_table_ = &make.parameter("pert_encoder.weight", {config.flags, config.dim});
  for (int64_t k = 0; k < config.domains; ++k)
    batch_norms_.push_back(
        make_batch_norm(cat("dsbn.bns.", k), config.dim, config.domain_affine, make, buffers));
  if (config.batch_norm)
    batch_norms_.push_back(make_batch_norm("bn", config.dim, true, make, buffers));
}

bool ScgptFront::trainable() const {
  bool any = genes_.trainable() || (values_ && values_->trainable()) || token_site_trainable() ||
             (flag_table_ != nullptr && flag_table_->trainable());
  for (const BatchNorm& norm : batch_norms_) any = any || norm.trainable();
  return any;
}

std::vector<Linear*> ScgptFront::linears() {
  return values_ ? values_->linears() : std::vector<Linear*>();
}

std::vector<LayerNorm*> ScgptFront::norms() {
  std::vector<LayerNorm*> all = values_ ? values_->norms() : std::vector<LayerNorm*>();
  all.insert(all.begin(), &genes_.norm());
  return all;
}

Dropout ScgptFront::dropout(bool training) const {
  const bool drops = training && config_.value_style == ValueStyle::continuous;
  return {.p = drops ? dropout_.p : 0.0f, .site = dropout_.site};
}

void ScgptFront::tell(Context& ctx, const EncodeOptions& options, const char* name,
                      ConstTensorView view) {
  if (view.dtype() == genes_.dtype()) return (*options.tap)(name, view);
  Arena::Scope scratch(ctx.scratch());
  const TensorView other = ctx.scratch().take(view.shape(), genes_.dtype());
  cast(ctx, view, other);
  (*options.tap)(name, other);
}

void ScgptFront::add_values(Context& ctx, const TokenBatch& batch, const EncodeOptions& options,
                            ConstTensorView gene, TensorView x) {
  Arena& keep = ctx.activations();
  // The tables are as small as the vocabulary of the batch; what is gathered from them is not.
  const ConstTensorView gene_table = in_type(ctx, gene, x.dtype());
  const Packing packing = batch.packing();
  if (!values_) {
    Arena::Scope scratch(ctx.scratch());
    const TensorView tokens = ctx.scratch().take(x.shape(), x.dtype());
    embedding_sum(ctx, gene_table, batch.gene_index(), {}, {}, {}, packing, tokens);
    scale_.assign(ctx, batch.tokens());
    scale_.apply(ctx, tokens, batch.values(), x);
    if (options.tap != nullptr) (*options.tap)("value_emb", batch.values());
    return;
  }
  TensorView value = values_->forward(ctx, batch, options.training, options.save);
  if (token_site_ != nullptr) {
    const TensorView adapted = keep.take(value.shape(), value.dtype());
    token_site_->forward(ctx, value, batch.value_rows(), options.save, adapted);
    value = adapted;
  }
  embedding_sum(ctx, gene_table, batch.gene_index(), in_type(ctx, value, x.dtype()),
                batch.value_index(), dropout(options.training), packing, x);
  if (options.tap == nullptr) return;
  Arena::Scope scratch(ctx.scratch());
  const TensorView tokens = ctx.scratch().take(x.shape(), value.dtype());
  embedding_sum(ctx, value, batch.value_index(), {}, {}, {}, packing, tokens);
  (*options.tap)("value_emb", tokens);
}

void ScgptFront::add_flags(Context& ctx, const TokenBatch& batch, const EncodeOptions& options,
                           TensorView x) {
  const int64_t known = flag_table_->value.dim(0);
  if (static_cast<int64_t>(options.flags.size()) != batch.tokens())
    throw DataError(cat("scgpt: this model needs the perturbation flag of every token, got ",
                        options.flags.size(), " of ", batch.tokens()),
                    "E-TOKEN-FLAG");
  for (const int32_t flag : options.flags)
    if (flag < 0 || flag >= known)
      throw DataError(cat("scgpt: the perturbation flag ", flag, " is outside 0 to ", known - 1),
                      "E-TOKEN-FLAG");
  flags_.assign(ctx, options.flags, known);
  Arena::Scope scratch(ctx.scratch());
  const ConstTensorView table = in_type(ctx, std::as_const(flag_table_->value).view(), x.dtype());
  const TensorView tokens = ctx.scratch().take(x.shape(), x.dtype());
  embedding_sum(ctx, table, flags_.index(), {}, {}, {}, batch.packing(), tokens);
  add(ctx, x, tokens, x);
}

BatchNorm* ScgptFront::batch_norm(int32_t domain) {
  if (batch_norms_.empty()) return nullptr;
  if (config_.domains == 0) return &batch_norms_.front();
  if (domain < 0 || domain >= config_.domains)
    throw DataError(
        cat("scgpt: the batch label ", domain, " has no batch norm; there are ", config_.domains),
        "E-BATCH-LABEL");
  return &batch_norms_[static_cast<size_t>(domain)];
}

void ScgptFront::forward(Context& ctx, const TokenBatch& batch, const EncodeOptions& options,
                         TensorView x) {
  const ConstTensorView gene = genes_.forward(ctx, batch, options.save);
  if (options.tap != nullptr) {
    Arena::Scope scratch(ctx.scratch());
    const TensorView tokens = ctx.scratch().take(x.shape(), gene.dtype());
    embedding_sum(ctx, gene, batch.gene_index(), {}, {}, {}, batch.packing(), tokens);
    (*options.tap)("gene_emb", tokens);
  }
  used_ = batch_norm(options.domain);
  TensorView sum = x;
  if (used_ != nullptr) sum = ctx.activations().take(x.shape(), x.dtype());
  add_values(ctx, batch, options, gene, sum);
  if (flag_table_ != nullptr) add_flags(ctx, batch, options, sum);
  if (used_ == nullptr) return;
  used_->forward(ctx, sum, options.training || options.batch_moments, x, &saved_);
  if (options.tap != nullptr && config_.domains > 0) tell(ctx, options, "dsbn_out", x);
}

void ScgptFront::gene_backward(Context& ctx, const TokenBatch& batch, ConstTensorView dx) {
  Arena::Scope scratch(ctx.scratch());
  if (!values_) {
    const TensorView scaled = scratch.take(dx.shape(), dx.dtype());
    scale_.apply(ctx, dx, batch.values(), scaled);
    dx = scaled;
  }
  const TensorView dgene =
      scratch.take({batch.unique_genes().numel(), config_.dim}, genes_.dtype());
  table_gradient(ctx, dx, batch.gene_uses(), {}, batch.packing(), dgene);
  genes_.backward(ctx, batch, dgene);
}

void ScgptFront::value_backward(Context& ctx, const TokenBatch& batch, bool training,
                                ConstTensorView dx) {
  Arena::Scope scratch(ctx.scratch());
  const Shape shape{batch.unique_values().numel(), config_.dim};
  const bool to_rows = values_->trainable();
  TensorView dvalue = scratch.take(shape, genes_.dtype());
  table_gradient(ctx, dx, batch.value_uses(), dropout(training), batch.packing(), dvalue);
  if (token_site_ != nullptr) {
    TensorView below;
    if (to_rows) below = scratch.take(shape, genes_.dtype());
    token_site_->backward(ctx, dvalue, batch.value_rows(), below);
    dvalue = below;
  }
  if (to_rows) values_->backward(ctx, batch, training, dvalue);
}

void ScgptFront::backward(Context& ctx, const TokenBatch& batch, const EncodeOptions& options,
                          ConstTensorView dx) {
  Arena::Scope scratch(ctx.scratch());
  if (used_ != nullptr) {
    const TensorView below = scratch.take(dx.shape(), dx.dtype());
    used_->backward(ctx, saved_, dx, below);
    dx = below;
  }
  if (genes_.trainable()) gene_backward(ctx, batch, dx);
  if (values_ && (values_->trainable() || token_site_trainable()))
    value_backward(ctx, batch, options.training, dx);
  if (flag_table_ != nullptr && flag_table_->trainable()) {
    const TensorView dtable = scratch.take(flag_table_->value.shape(), genes_.dtype());
    table_gradient(ctx, dx, flags_.uses(), {}, batch.packing(), dtable);
    // As padding in the original, which this flag is, it has no gradient.
    if (config_.flag_pad >= 0 && config_.flag_pad < config_.flags)
      set_zero(ctx, dtable.rows(config_.flag_pad, config_.flag_pad + 1));
    add(ctx, std::as_const(flag_table_->grad).view(), dtable, flag_table_->grad.view());
  }
}

}  // namespace scgraft
