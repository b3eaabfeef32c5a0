// SPDX-License-Identifier: Apache-2.0
#include "model/norm.h"

#include "kernels/require_tensor.h"

namespace scgraft {

bool LayerNorm::y_determines_xhat() const {
  const ConstTensorView g = std::as_const(gamma->value).view();
  const ConstTensorView b = std::as_const(beta->value).view();
  // Values that change would have to be looked at in every step.
  if (g.device().is_cuda() && trainable()) return false;
  const bool keep = g.device().is_cuda();
  if (keep && judged_ == g.data()) return invertible_;
  const bool answer = layer_norm_is_invertible(g, b);
  judged_ = keep ? g.data() : nullptr;
  invertible_ = answer;
  return answer;
}

void LayerNorm::forward(Context& ctx, ConstTensorView x, ConstTensorView branch, Dropout dropout,
                        const Packing* packing, TensorView y, Saved* saved) const {
  const ConstTensorView g = std::as_const(gamma->value).view();
  const ConstTensorView b = std::as_const(beta->value).view();
  TensorView rstd, xhat;
  if (saved != nullptr) {
    rstd = ctx.activations().take({x.dim(0)}, sum_type(x.dtype()));
    saved->rstd = rstd;
    if (gamma->trainable() || !y_determines_xhat()) {
      xhat = ctx.activations().take(x.shape(), x.dtype());
      saved->xhat = xhat;
    } else {
      saved->y = y;
    }
  }
  layer_norm(ctx, x, branch, dropout, packing, g, b, eps, y, rstd, xhat);
}

void LayerNorm::backward(Context& ctx, const Saved& saved, ConstTensorView dy, Dropout dropout,
                         const Packing* packing, TensorView dx, TensorView dbranch) {
  layer_norm_backward(ctx, dy, {.y = saved.y, .xhat = saved.xhat, .rstd = saved.rstd},
                      std::as_const(gamma->value).view(), std::as_const(beta->value).view(),
                      dropout, packing, dx, dbranch,
                      gamma->grad.empty() ? TensorView() : gamma->grad.view(),
                      beta->grad.empty() ? TensorView() : beta->grad.view());
}

}  // namespace scgraft
