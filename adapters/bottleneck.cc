// SPDX-License-Identifier: Apache-2.0
#include "adapters/bottleneck.h"

#include <cmath>

#include "kernels/activation.h"
#include "kernels/add.h"

namespace scgraft {

Bottleneck::Bottleneck(ParameterSet& parameters, const std::string& name, Shape shape, Start start,
                       const Tensor& like, uint64_t seed)
    : shape_(shape) {
  const DType dtype = like.dtype() == DType::f64 ? DType::f64 : DType::f32;
  const auto make = [&](const char* part, scgraft::Shape dims, int64_t fan_in, bool zero) {
    Parameter& p = parameters.add(cat(name, part), Tensor(dims, dtype, like.device()));
    if (!zero) initialise_uniform(p, 1.0 / std::sqrt(static_cast<double>(fan_in)), seed);
    return &p;
  };
  const bool zero = start == Start::identity;
  const int64_t d = shape.dim, m = shape.width;
  if (shape.norm) {
    norm_.emplace();
    norm_->gamma = make(".norm.weight", {d}, d, true);
    norm_->beta = make(".norm.bias", {d}, d, true);
    fill(*norm_->gamma, 1.0);
  }
  Parameter* const w1 = make(".fc1.weight", {m, d}, d, false);
  fc1_ = Linear(w1, make(".fc1.bias", {m}, d, false));
  Parameter* const w2 = make(".fc2.weight", {d, m}, m, zero);
  fc2_ = Linear(w2, make(".fc2.bias", {d}, m, zero));
  product_ = dtype;
}

void Bottleneck::use_type(DType product) {
  if (product == product_) return;
  product_ = product;
  fc1_.set_precision(product);
  fc2_.set_precision(product);
}

void Bottleneck::forward(Context& ctx, ConstTensorView x, const Packing& rows, bool save,
                         TensorView y) {
  use_type(x.dtype());
  Arena::Scope scratch(ctx.scratch());
  ConstTensorView n = x;
  if (norm_) {
    const TensorView normed = (save ? ctx.activations() : ctx.scratch()).take(x.shape(), x.dtype());
    norm_->forward(ctx, x, {}, {}, nullptr, normed, save ? &norm_saved_ : nullptr);
    n = normed;
  }
  const scgraft::Shape narrow{x.dim(0), shape_.width};
  const TensorView hidden = ctx.scratch().take(narrow, x.dtype());
  TensorView pre;
  if (save) pre = ctx.activations().take(narrow, x.dtype());
  fc1_.forward(ctx, n, rows, false, hidden, {.gelu = true, .pre = pre});
  fc2_.forward(ctx, hidden, rows, false, y, {.residual = shape_.skip ? n : ConstTensorView()});
  if (shape_.scale != 1) add(ctx, {}, y, y, shape_.scale);
  n_ = save && trainable() ? n : ConstTensorView();
  pre_ = pre;
}

void Bottleneck::backward(Context& ctx, ConstTensorView dy, const Packing& rows, TensorView dx) {
  const bool learn = trainable();
  if (!learn && dx.empty()) return;
  Arena::Scope scratch(ctx.scratch());
  ConstTensorView dout = dy;
  if (shape_.scale != 1) {
    const TensorView scaled = ctx.scratch().take(dy.shape(), dy.dtype());
    add(ctx, {}, dy, scaled, shape_.scale);
    dout = scaled;
  }
  // What is narrow is computed again rather than kept twice.
  const TensorView hidden = ctx.scratch().take(pre_.shape(), pre_.dtype());
  const TensorView dhidden = ctx.scratch().take(pre_.shape(), pre_.dtype());
  if (fc2_.trainable()) activation(ctx, Activation::gelu, pre_, hidden);
  fc2_.backward(ctx, hidden, dout, rows, false, false, dhidden);
  activation_backward(ctx, Activation::gelu, pre_, dhidden, dhidden);
  TensorView dn = dx;
  if (dn.empty() && norm_ && norm_->trainable()) dn = ctx.scratch().take(dy.shape(), dy.dtype());
  if (!dn.empty() && shape_.skip) copy(ctx, dy, dn);
  fc1_.backward(ctx, n_, dhidden, rows, false, shape_.skip, dn);
  if (norm_ && !dn.empty()) norm_->backward(ctx, norm_saved_, dn, {}, &rows, dn, {});
}

void Bottleneck::parameters_updated() {
  fc1_.weight_changed();
  fc2_.weight_changed();
  if (norm_) norm_->values_changed();
}

}  // namespace scgraft
