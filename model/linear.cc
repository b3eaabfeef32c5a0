// SPDX-License-Identifier: Apache-2.0
#include "model/linear.h"

namespace scgraft {

ConstTensorView Linear::weight_rows() const {
  return std::as_const(weight_->value).view().rows(begin_, end_);
}
TensorView Linear::mutable_weight_rows() { return weight_->value.view().rows(begin_, end_); }

bool Linear::trainable() const {
  return weight_->trainable() || (bias_ != nullptr && bias_->trainable()) ||
         (site_ != nullptr && site_->trainable());
}

void Linear::set_precision(DType product) {
  product_ = product;
  weight_changed();
}

void Linear::weight_changed() {
  forward_stale_ = true;
  backward_stale_ = true;
  if (site_ != nullptr) site_->parameters_updated();
}

PackedWeight& Linear::packed(Context& ctx, PackedFor use) {
  PackedWeight& p = use == PackedFor::forward ? forward_ : backward_;
  bool& stale = use == PackedFor::forward ? forward_stale_ : backward_stale_;
  if (stale) {
    const bool replaced = site_ != nullptr && site_->replaces_weight();
    const ConstTensorView weight = replaced ? site_->weight(ctx, *this) : weight_rows();
    p.pack(ctx, weight, use, weight.dtype() == DType::f64 ? DType::f64 : product_);
    stale = false;
  }
  return p;
}

void Linear::forward(Context& ctx, ConstTensorView x, const Packing& packing, bool training,
                     TensorView y, const LinearEpilogue& epilogue) {
  ConstTensorView bias;
  if (bias_ != nullptr) bias = std::as_const(bias_->value).view().rows(begin_, end_);
  std::span<const LowRank> terms;
  if (site_ != nullptr) terms = site_->terms(ctx, *this, training);
  linear(ctx, x, packed(ctx, PackedFor::forward), bias, terms, &packing, y, epilogue);
}

void Linear::backward(Context& ctx, ConstTensorView x, ConstTensorView dy, const Packing& packing,
                      bool training, bool accumulate, TensorView dx) {
  if (site_ != nullptr && site_->trainable()) site_->backward(ctx, *this, x, dy, packing);
  if (weight_->trainable() || (bias_ != nullptr && bias_->trainable())) {
    TensorView dweight, dbias;
    if (weight_->trainable()) dweight = weight_->grad.view().rows(begin_, end_);
    if (bias_ != nullptr && bias_->trainable()) dbias = bias_->grad.view().rows(begin_, end_);
    linear_backward_weight(ctx, x, dy, packing, dweight, dbias);
  }
  if (dx.empty()) return;
  std::span<const LowRank> terms;
  if (site_ != nullptr) terms = site_->terms(ctx, *this, training);
  linear_backward_input(ctx, dy, packed(ctx, PackedFor::backward_input), terms, &packing,
                        accumulate, dx);
}

}  // namespace scgraft
