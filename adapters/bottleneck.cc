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
  const bool keep = save && trainable();
  const scgraft::Shape narrow{x.dim(0), shape_.width};
  const TensorView hidden = ctx.scratch().take(narrow, x.dtype());
  TensorView pre;
  if (save) pre = ctx.activations().take(narrow, x.dtype());
  fc1_.forward(ctx, x, rows, false, hidden, {.gelu = true, .pre = pre});
  fc2_.forward(ctx, hidden, rows, false, y, {.residual = shape_.skip ? x : ConstTensorView()});
  if (shape_.scale != 1) add(ctx, {}, y, y, shape_.scale);
  x_ = keep ? x : ConstTensorView();
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
  if (!dx.empty() && shape_.skip) copy(ctx, dy, dx);
  fc1_.backward(ctx, x_, dhidden, rows, false, shape_.skip, dx);
}

void Bottleneck::parameters_updated() {
  fc1_.weight_changed();
  fc2_.weight_changed();
}

}  // namespace scgraft
