// SPDX-License-Identifier: Apache-2.0
#include "kernels/layer_norm.h"

#include <cmath>

#include "kernels/norm_rows.h"
#include "kernels/require_tensor.h"
#include "runtime/tensor.h"

namespace scgraft {

void layer_norm(Context& ctx, ConstTensorView x, ConstTensorView branch, Dropout dropout,
                const Packing* packing, ConstTensorView gamma, ConstTensorView beta, double eps,
                TensorView y, TensorView rstd, TensorView xhat) {
  const RowDropout drop = check_norm<Norm::layer>("layer_norm", ctx, x, branch, dropout, packing,
                                                  gamma, beta, eps, y, rstd, xhat);
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda())
      return cuda::layer_norm(ctx, x, branch, dropout, packing, gamma, beta, eps, y, rstd, xhat);
  }
  norm_forward<Norm::layer>(ctx, x, branch, drop, gamma, beta, eps, y, rstd, xhat);
}

void layer_norm_backward(Context& ctx, ConstTensorView dy, const LayerNormSaved& saved,
                         ConstTensorView gamma, ConstTensorView beta, Dropout dropout,
                         const Packing* packing, TensorView dx, TensorView dbranch,
                         TensorView dgamma, TensorView dbeta) {
  const RowDropout drop =
      check_norm_backward<Norm::layer>("layer_norm_backward", ctx, dy, saved, gamma, beta, dropout,
                                       packing, dx, dbranch, dgamma, dbeta);
  if (dy.dim(0) == 0) return;
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda())
      return cuda::layer_norm_backward(ctx, dy, saved, gamma, beta, dropout, packing, dx, dbranch,
                                       dgamma, dbeta);
  }
  norm_backward<Norm::layer>(ctx, dy, saved, gamma, beta, drop, packing, dx, dbranch, dgamma,
                             dbeta);
}

bool layer_norm_is_invertible(ConstTensorView gamma, ConstTensorView beta) {
  constexpr const char* kOp = "layer_norm_is_invertible";
  require(gamma.rank() == 1, kOp, ": gamma must be [dim], got ", gamma.shape());
  require_tensor(kOp, "beta", beta, gamma.shape(), gamma.dtype());
  if (gamma.device().is_cuda() || beta.device().is_cuda()) {
    Tensor host_gamma(gamma.shape(), gamma.dtype()), host_beta(beta.shape(), beta.dtype());
    copy(gamma, host_gamma.view());
    copy(beta, host_beta.view());
    return layer_norm_is_invertible(host_gamma.view(), host_beta.view());
  }
  return visit_real(gamma.dtype(), [&]<class T>(Type<T>) {
    const T* g = gamma.as<T>();
    const T* b = beta.as<T>();
    // Written so that NaN gives false.
    for (int64_t f = 0; f < gamma.numel(); ++f)
      if (g[f] == 0 || !(std::abs(b[f] / g[f]) < 8)) return false;
    return true;
  });
}

}  // namespace scgraft
