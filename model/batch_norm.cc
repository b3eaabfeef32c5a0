// SPDX-License-Identifier: Apache-2.0
#include "model/batch_norm.h"

#include "kernels/add.h"
#include "kernels/require_tensor.h"

namespace scgraft {
namespace {

// to += momentum (factor now - to).
void collect(Context& ctx, ConstTensorView now, double factor, double momentum, TensorView to) {
  add(ctx, {}, to, to, 1 - momentum);
  add(ctx, to, now, to, momentum * factor);
}

TensorView gradient_of(Parameter* p) {
  return p == nullptr || !p->trainable() ? TensorView() : p->grad.view();
}

}  // namespace

BatchNormMap BatchNorm::map(ConstTensorView of_mean, ConstTensorView of_var) const {
  BatchNormMap map{.mean = of_mean, .var = of_var, .eps = eps};
  if (gamma == nullptr) return map;
  map.gamma = std::as_const(gamma->value).view();
  map.beta = std::as_const(beta->value).view();
  return map;
}

void BatchNorm::forward(Context& ctx, ConstTensorView x, bool of_batch, TensorView y,
                        Saved* saved) {
  ConstTensorView m = std::as_const(mean->value).view();
  ConstTensorView v = std::as_const(var->value).view();
  if (of_batch) {
    const int64_t rows = x.dim(0);
    if (rows < 2)
      throw DataError(cat("batch norm in training needs more than ", rows, " row"), "E-BATCH-NORM");
    const TensorView now_m = ctx.activations().take(m.shape(), m.dtype());
    const TensorView now_v = ctx.activations().take(v.shape(), v.dtype());
    batch_moments(ctx, x, now_m, now_v);
    collect(ctx, now_m, 1, momentum, mean->value.view());
    collect(ctx, now_v, static_cast<double>(rows) / static_cast<double>(rows - 1), momentum,
            var->value.view());
    ++*batches->value.as<int64_t>();
    m = now_m;
    v = now_v;
  }
  batch_norm(ctx, x, map(m, v), y);
  if (saved != nullptr) *saved = {.x = x, .mean = m, .var = v, .of_batch = of_batch};
}

void BatchNorm::backward(Context& ctx, const Saved& saved, ConstTensorView dy, TensorView dx) {
  batch_norm_backward(ctx, saved.x, dy, map(saved.mean, saved.var), saved.of_batch, dx,
                      gradient_of(gamma), gradient_of(beta));
}

}  // namespace scgraft
