// SPDX-License-Identifier: Apache-2.0
#include "training/classification.h"

#include <algorithm>
#include <cmath>

#include "kernels/cross_entropy.h"

namespace scgraft {

CellClassification::CellClassification(CellNetwork& network, std::vector<float> class_weights)
    : network_(network), class_weights_(std::move(class_weights)) {
  require(network_.classes() > 0, "a network without a head cannot learn classes");
  require(
      class_weights_.empty() || static_cast<int64_t>(class_weights_.size()) == network_.classes(),
      "there are ", class_weights_.size(), " class weights for ", network_.classes(), " classes");
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
      view_of(std::as_const(class_weights_).data(), Shape{network_.classes()});
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
  const TensorView logits = activations.take({cells, network_.classes()}, DType::f32);
  const TensorView loss = activations.take({cells}, DType::f32);
  network_.forward(ctx, batch, training, learn, logits);
  cross_entropy(ctx, logits, batch.labels(), weights_on(ctx), scale.value, loss,
                learn ? logits : TensorView(), scale.factor);
  sums.add(ctx, loss);
  for (const int32_t label : batch.host_labels())
    if (label >= 0)
      sums.weight += class_weights_.empty()
                         ? 1.0
                         : static_cast<double>(class_weights_[static_cast<size_t>(label)]);
  if (learn) network_.backward(ctx, batch, training, logits);
}

void CellClassification::predict(Context& ctx, const TokenBatch& batch, TensorView probabilities,
                                 TensorView embedding) {
  Arena::Scope activations(ctx.activations());
  const int64_t cells = batch.cells();
  const bool here = ctx.device().is_cpu();
  const auto on_device = [&](TensorView wanted) {
    return here || wanted.empty() ? wanted : activations.take(wanted.shape(), DType::f32);
  };
  const TensorView vectors = on_device(embedding), logits = on_device(probabilities);
  network_.infer(ctx, batch, vectors, logits);
  if (!here && !embedding.empty()) copy(ctx, vectors, embedding);
  if (!here && !probabilities.empty()) copy(ctx, logits, probabilities);
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
