// SPDX-License-Identifier: Apache-2.0
#include "training/classification.h"

#include <algorithm>
#include <cmath>

#include "kernels/cross_entropy.h"

namespace scgraft {

CellClassification::CellClassification(Backbone& backbone, Classifier& classifier,
                                       std::vector<float> class_weights)
    : backbone_(backbone), classifier_(classifier), class_weights_(std::move(class_weights)) {
  require(class_weights_.empty() ||
              static_cast<int64_t>(class_weights_.size()) == classifier_.classes(),
          "there are ", class_weights_.size(), " class weights for ", classifier_.classes(),
          " classes");
}

double CellClassification::weight(std::span<const CellView> cells) const {
  double sum = 0;
  for (const CellView& cell : cells)
    if (cell.label >= 0)
      sum += class_weights_.empty()
                 ? 1.0
                 : static_cast<double>(class_weights_[static_cast<size_t>(cell.label)]);
  return sum;
}

ConstTensorView CellClassification::weights_on(Context& ctx) {
  if (class_weights_.empty()) return {};
  const ConstTensorView host =
      view_of(std::as_const(class_weights_).data(), Shape{classifier_.classes()});
  if (ctx.device().is_cpu()) return host;
  if (weights_on_device_.empty() || weights_on_device_.device() != ctx.device()) {
    weights_on_device_ = Tensor(host.shape(), host.dtype(), ctx.device());
    copy(ctx, host, weights_on_device_.view());
  }
  return std::as_const(weights_on_device_).view();
}

void CellClassification::run(Context& ctx, const TokenBatch& batch, bool training,
                             const GradientScale& scale, ObjectiveSums& sums) {
  Arena::Scope activations(ctx.activations());
  const int64_t cells = batch.cells();
  const bool learn = scale.value > 0;
  const EncodeOptions encode{.training = training, .save = learn, .rows = LayerRows::cls};
  const TensorView embedding = activations.take({cells, backbone_.dim()}, DType::f32);
  backbone_.encode(ctx, batch, encode, embedding);

  const Packing rows = batch.cell_rows();
  const TensorView logits = activations.take({cells, classifier_.classes()}, DType::f32);
  const TensorView loss = activations.take({cells}, DType::f32);
  Classifier::Saved saved;
  classifier_.forward(ctx, embedding, rows, logits, learn ? &saved : nullptr);
  cross_entropy(ctx, logits, batch.labels(), weights_on(ctx), scale.value, loss,
                learn ? logits : TensorView(), scale.factor);
  sums.add(ctx, loss);
  for (const int32_t label : batch.host_labels())
    if (label >= 0)
      sums.weight += class_weights_.empty()
                         ? 1.0
                         : static_cast<double>(class_weights_[static_cast<size_t>(label)]);
  if (!learn) return;
  const TensorView dcells = activations.take({cells, backbone_.dim()}, DType::f32);
  classifier_.backward(ctx, saved, logits, rows, dcells);
  backbone_.encode_backward(ctx, batch, encode, dcells);
}

void CellClassification::predict(Context& ctx, const TokenBatch& batch, TensorView probabilities,
                                 TensorView embedding) {
  Arena::Scope activations(ctx.activations());
  const int64_t cells = batch.cells();
  const TensorView cell = activations.take({cells, backbone_.dim()}, DType::f32);
  backbone_.encode(ctx, batch, {.rows = LayerRows::cls}, cell);
  if (!embedding.empty()) copy(ctx, cell, embedding);
  if (!probabilities.empty()) {
    const bool here = ctx.device().is_cpu();
    const TensorView logits =
        here ? probabilities : activations.take(probabilities.shape(), DType::f32);
    classifier_.forward(ctx, cell, batch.cell_rows(), logits, nullptr);
    if (!here) copy(ctx, logits, probabilities);
  }
  ctx.synchronize();
  if (probabilities.empty()) return;
  const auto p = probabilities.as<float, 2>();
  for (int64_t i = 0; i < cells; ++i) {
    float largest = p(i, 0);
    for (int64_t c = 1; c < p.dim(1); ++c) largest = std::max(largest, p(i, c));
    double sum = 0;
    for (int64_t c = 0; c < p.dim(1); ++c) sum += std::exp(static_cast<double>(p(i, c) - largest));
    for (int64_t c = 0; c < p.dim(1); ++c)
      p(i, c) = static_cast<float>(std::exp(static_cast<double>(p(i, c) - largest)) / sum);
  }
}

}  // namespace scgraft
