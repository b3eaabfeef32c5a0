// SPDX-License-Identifier: Apache-2.0
#include "training/trace_scgpt_pass.h"

#include "kernels/add.h"
#include "kernels/contrastive.h"
#include "kernels/cross_entropy.h"
#include "kernels/ecs.h"
#include "kernels/join_columns.h"
#include "kernels/l2_normalize.h"
#include "kernels/masked_mse.h"
#include "kernels/pool.h"

namespace scgraft {
namespace {

// The original's default, and that of its scripts for models of several batches.
constexpr double kEcsThreshold = 0.3;
constexpr double kEcsThresholdOfBatches = 0.8;
constexpr double kTemperature = 0.5;

}  // namespace

ScgptPass::ScgptPass(Context& ctx, ScgptNetwork& net, const ScgptCase& inputs,
                     const Options& options, TraceArrays& out)
    : ctx_(ctx), net_(net), case_(inputs), options_(options), out_(out) {
  batch_.assign(ctx, inputs.cells());
  const ConstTensorView weights =
      view_of(inputs.class_weight.data(), Shape{static_cast<int64_t>(inputs.class_weight.size())});
  class_weight_ = Tensor(weights.shape(), weights.dtype(), ctx.device());
  copy(ctx, weights, class_weight_.view());
  if (!has_targets()) return;
  std::vector<int32_t> labels;
  int64_t masked = 0;
  for (size_t t = 0; t < batch_.host_masked().size(); ++t) {
    const bool counts = batch_.host_masked()[t] != 0;
    masked += counts;
    labels.push_back(counts ? batch_.host_targets()[t] > 0 : -1);
  }
  mse_scale_ = masked > 0 ? 1.0 / static_cast<double>(masked) : 0.0;
  expressed_ = Tensor({batch_.tokens()}, DType::i32, ctx.device());
  copy(ctx, view_of(std::as_const(labels).data(), expressed_.shape()), expressed_.view());
  ctx.synchronize();  // the labels go
}

TensorView ScgptPass::zeros(Shape shape) {
  const TensorView view = take(shape);
  set_zero(ctx_, view);
  return view;
}

void ScgptPass::tell(const std::string& name, Tensor array) {
  out_[options_.prefix + name] = std::move(array);
}

void ScgptPass::tell_loss(const std::string& name, double value) {
  total_ += value;
  if (options_.losses) out_[name] = scalar(value);
}

void ScgptPass::pool_cells() {
  const Pooling style = net_.config().cell_style;
  cell_ = take({batch_.cells(), net_.dim()});
  const bool weighted = style == Pooling::weighted;
  pool(ctx_, style, x_, weighted ? batch_.values() : ConstTensorView(), batch_.packing(), cell_);
  if (!weighted) return;
  cell_norm_ = take({batch_.cells()});
  l2_normalize(ctx_, cell_, cell_, cell_norm_);
}

void ScgptPass::pool_backward() {
  const Pooling style = net_.config().cell_style;
  const bool weighted = style == Pooling::weighted;
  if (weighted) l2_normalize_backward(ctx_, cell_, cell_norm_, dcell_, dcell_);
  const TensorView dx = take(x_.shape());
  scgraft::pool_backward(ctx_, style, dcell_, weighted ? batch_.values() : ConstTensorView(),
                         batch_.packing(), dx);
  add(ctx_, dtokens_, dx, dtokens_);
}

void ScgptPass::read_heads_input() {
  tokens_ = x_;
  cells_ = cell_;
  if (BatchEncoder* batches = net_.batch_encoder()) {
    tokens_ = batches->beside_tokens(ctx_, batch_, x_);
    cells_ = batches->beside_cells(ctx_, batch_, cell_);
  }
  dtokens_ = zeros(tokens_.shape());
  dcells_ = zeros(cells_.shape());
  dcell_ = zeros(cell_.shape());
}

void ScgptPass::masked_error(const std::string& name, TensorView y) {
  const TensorView loss = take({batch_.cells()});
  masked_mse(ctx_, y, batch_.targets(), batch_.masked(), batch_.packing(), mse_scale_, loss, y);
  tell_loss(name, sum_of(loss) * mse_scale_);
}

bool ScgptPass::expressed(const std::string& name, const std::string& loss, TensorView logits) {
  const TensorView probabilities = take(logits.shape());
  activation(ctx_, Activation::sigmoid, logits, probabilities);
  tell(cat("out_", name, "_zero_probs"), case_.grid.padded(probabilities, 0));
  if (!has_targets()) return false;
  // Cross entropy of the two classes with logits 0 and this one.
  const int64_t n = batch_.tokens();
  const TensorView two = take({n, 2});
  const TensorView each = take({n});
  join_columns(ctx_, zeros({n, 1}), logits.reshape({n, 1}), two);
  cross_entropy(ctx_, two, std::as_const(expressed_).view(), {}, mse_scale_, each, two);
  tell_loss(loss, sum_of(each) * mse_scale_);
  split_columns(ctx_, two, {}, logits.reshape({n, 1}));
  return true;
}

void ScgptPass::expression() {
  if (net_.decoder() == nullptr) return;
  const int64_t n = batch_.tokens();
  const Packing packing = batch_.packing();
  const TensorView dx = take(tokens_.shape());
  const TensorView y = take({n, 1});
  ExpressionDecoder::Saved saved;
  net_.decoder()->forward(ctx_, tokens_, packing, y, &saved);
  tell("out_mlm_output", case_.grid.padded(y.reshape({n}), 0));
  if (has_targets()) {
    masked_error("loss_mse", y.reshape({n}));
    if (options_.gradient.expression) {
      net_.decoder()->backward(ctx_, saved, y, packing, dx);
      add(ctx_, dtokens_, dx, dtokens_);
    }
  }
  if (net_.zero_decoder() == nullptr) return;
  const TensorView zero = take({n, 1});
  net_.zero_decoder()->forward(ctx_, tokens_, packing, zero, &saved);
  if (!expressed("mlm", "loss_nzlp", zero.reshape({n})) || !options_.gradient.zeros) return;
  net_.zero_decoder()->backward(ctx_, saved, zero, packing, dx);
  add(ctx_, dtokens_, dx, dtokens_);
}

void ScgptPass::affine() {
  AffineDecoder* head = net_.affine_decoder();
  if (head == nullptr) return;
  const int64_t n = batch_.tokens();
  const Packing packing = batch_.packing();
  const TensorView y = take({n, 1});
  AffineDecoder::Saved saved;
  head->forward(ctx_, tokens_, batch_.values(), packing, y, saved);
  tell("out_mlm_output", case_.grid.padded(y.reshape({n}), 0));
  tell("coeff", case_.grid.padded(saved.a.reshape({n}), 0));
  tell("bias", case_.grid.padded(saved.b.reshape({n}), 0));
  if (!has_targets()) return;
  masked_error("loss", y.reshape({n}));
  if (!options_.gradient.expression) return;
  const TensorView dx = take(tokens_.shape());
  head->backward(ctx_, saved, y, batch_.values(), packing, dx);
  add(ctx_, dtokens_, dx, dtokens_);
}

void ScgptPass::genes_of_cells() {
  MvcDecoder* head = net_.mvc();
  if (head == nullptr) return;
  const int64_t n = batch_.tokens();
  const TensorView y = take({n});
  TensorView zero;
  if (head->w_zero) zero = take({n});
  MvcDecoder::Saved saved;
  head->forward(ctx_, net_.gene_rows(), cells_, batch_, y, &saved, zero);
  tell("out_mvc_output", case_.grid.padded(y, 0));
  if (has_targets()) masked_error("loss_mvc", y);
  if (!zero.empty() && (!expressed("mvc", "loss_mvc_nzlp", zero) || !options_.gradient.zeros))
    zero = {};
  if (!has_targets() || !options_.gradient.expression) return;
  const TensorView dgene = take(net_.gene_rows().shape());
  const TensorView part = take(cells_.shape());
  head->backward(ctx_, saved, y, batch_, part, dgene, zero);
  net_.add_gene_gradient(ctx_, dgene);
  add(ctx_, dcells_, part, dcells_);
}

void ScgptPass::genes_by_query() {
  QueryMvc* head = net_.query_mvc();
  if (head == nullptr) return;
  const int64_t n = batch_.tokens();
  const TensorView y = take({n, 1});
  QueryMvc::Saved saved;
  head->forward(ctx_, net_.gene_rows(), cell_, batch_, y, saved);
  tell(head->concat ? "mvc_concat_query" : "mvc_sum_query", case_.grid.padded(y.reshape({n}), 0));
  if (!has_targets()) return;
  masked_error("loss_mvc", y.reshape({n}));
  if (!options_.gradient.expression) return;
  const TensorView dgene = take(net_.gene_rows().shape());
  const TensorView part = take(cell_.shape());
  head->backward(ctx_, saved, y, batch_, part, dgene);
  net_.add_gene_gradient(ctx_, dgene);
  add(ctx_, dcell_, part, dcell_);
}

void ScgptPass::similarity() {
  const TensorView loss = take({1});
  const ScgptLosses& wanted = options_.gradient;
  const double threshold = net_.config().domains > 0 ? kEcsThresholdOfBatches : kEcsThreshold;
  ecs(ctx_, cell_, threshold, 10.0, loss, wanted.similarity ? dcell_ : TensorView());
  tell("out_loss_ecs", scalar(sum_of(loss)));
  total_ += 10 * sum_of(loss);
  const TensorView dcell = wanted.contrastive ? dcell_ : TensorView();
  contrastive(ctx_, cell_, cell_, kTemperature, 10.0, loss, dcell, dcell);
  tell("out_loss_cce", scalar(sum_of(loss)));
}

double ScgptPass::classification(ConstTensorView logits, bool weighted, TensorView dlogits) {
  double weight = 0;
  for (const int32_t label : case_.labels) {
    require<DataError>(label < logits.dim(1), "celltype_labels holds ", label, ", the head has ",
                       logits.dim(1), " classes");
    weight +=
        weighted ? static_cast<double>(case_.class_weight.at(static_cast<size_t>(label))) : 1.0;
  }
  ConstTensorView weights;
  if (weighted) {
    weights = std::as_const(class_weight_).view();
    require<DataError>(weights.numel() == logits.dim(1), "class_weight has ", weights.numel(),
                       " entries, the head has ", logits.dim(1), " classes");
  }
  const TensorView loss = take({batch_.cells()});
  cross_entropy(ctx_, logits, batch_.labels(), weights, 1.0 / weight, loss, dlogits);
  return sum_of(loss) / weight;
}

void ScgptPass::classes() {
  Classifier* head = net_.classifier();
  if (head == nullptr) return;
  const TensorView logits = take({batch_.cells(), head->classes()});
  Classifier::Saved saved;
  head->forward(ctx_, cell_, batch_.cell_rows(), logits, &saved);
  tell("out_cls_output", host_copy(logits));
  if (!case_.has_labels()) return;
  const bool weights = !case_.class_weight.empty();
  const ScgptLosses& wanted = options_.gradient;
  require<DataError>(!wanted.weighted || weights, "the inputs have no class_weight, which ",
                     "this gradient needs");
  // The gradient that is wanted alone is kept.
  const TensorView dlogits = take(logits.shape());
  if (weights) {
    const double loss = classification(logits, true, wanted.weighted ? dlogits : TensorView());
    out_["loss_cls_weighted"] = scalar(loss);
    out_["loss"] = scalar(loss);
  }
  out_["loss_cls"] =
      scalar(classification(logits, false, wanted.weighted ? TensorView() : dlogits));
  if (!wanted.classes) return;
  const TensorView part = take(cell_.shape());
  head->backward(ctx_, saved, dlogits, batch_.cell_rows(), part);
  add(ctx_, dcell_, part, dcell_);
}

void ScgptPass::adversary() {
  Classifier* head = net_.adversary();
  if (head == nullptr) return;
  const TensorView logits = take({batch_.cells(), head->classes()});
  Classifier::Saved saved;
  head->forward(ctx_, cell_, batch_.cell_rows(), logits, &saved);
  tell("out_dab_output", host_copy(logits));
  if (case_.batches.empty()) return;
  const TensorView dlogits = take(logits.shape());
  tell_loss("loss_dab", mean_cross_entropy(ctx_, logits, case_.batches, dlogits));
  if (!options_.gradient.adversary) return;
  const TensorView part = take(cell_.shape());
  head->backward(ctx_, saved, dlogits, batch_.cell_rows(), part);
  // The encoder is to make the batches hard to tell apart.
  add(ctx_, dcell_, part, dcell_, -1);
}

void ScgptPass::run() {
  Arena::Scope activations(ctx_.activations());
  const bool learn = options_.gradient.any();
  const Tap tap = [&](const std::string& name, ConstTensorView view) {
    tell(name, case_.grid.padded(view, view.rank() == 2 ? view.dim(1) : 0));
  };
  const EncodeOptions encode{.save = learn,
                             .tap = &tap,
                             .visible = case_.visible,
                             .flags = case_.flags,
                             .batches = case_.batches,
                             .domain = case_.batches.empty() ? 0 : case_.batches.front(),
                             .batch_moments = options_.batch_moments};
  x_ = take({batch_.tokens(), net_.dim()});
  net_.encode(ctx_, batch_, encode, x_);
  tell("transformer_output", case_.grid.padded(x_, net_.dim()));
  pool_cells();
  tell("out_cell_emb", host_copy(cell_));
  read_heads_input();
  expression();
  affine();
  genes_of_cells();
  genes_by_query();
  similarity();
  classes();
  adversary();
  if (options_.losses && net_.adversary() != nullptr && has_targets())
    out_["loss_total"] = scalar(total_);
  if (!learn) return;
  if (BatchEncoder* batches = net_.batch_encoder()) {
    const TensorView dx = take(x_.shape());
    const TensorView dcell = take(cell_.shape());
    batches->backward(ctx_, batch_, dtokens_, dx, dcells_, dcell);
    dtokens_ = dx;
    dcells_ = dcell;
  }
  add(ctx_, dcell_, dcells_, dcell_);
  pool_backward();
  net_.encode_backward(ctx_, batch_, encode, dtokens_);
}

}  // namespace scgraft
