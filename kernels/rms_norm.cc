// SPDX-License-Identifier: Apache-2.0
#include "kernels/rms_norm.h"

#include <cmath>
#include <limits>

#include "kernels/norm_rows.h"
#include "runtime/tensor.h"

namespace scgraft {

void rms_norm(Context& ctx, ConstTensorView x, ConstTensorView branch, Dropout dropout,
              const Packing* packing, ConstTensorView gamma, double eps, TensorView y,
              TensorView rstd, TensorView xhat) {
  const RowDropout drop = check_norm<Norm::rms>("rms_norm", ctx, x, branch, dropout, packing, gamma,
                                                {}, eps, y, rstd, xhat);
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda())
      return cuda::rms_norm(ctx, x, branch, dropout, packing, gamma, eps, y, rstd, xhat);
  }
  norm_forward<Norm::rms>(ctx, x, branch, drop, gamma, {}, eps, y, rstd, xhat);
}

void rms_norm_backward(Context& ctx, ConstTensorView dy, const RmsNormSaved& saved,
                       ConstTensorView gamma, Dropout dropout, const Packing* packing,
                       TensorView dx, TensorView dbranch, TensorView dgamma) {
  const RowDropout drop = check_norm_backward<Norm::rms>(
      "rms_norm_backward", ctx, dy, saved, gamma, {}, dropout, packing, dx, dbranch, dgamma, {});
  if (dy.dim(0) == 0) return;
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda())
      return cuda::rms_norm_backward(ctx, dy, saved, gamma, dropout, packing, dx, dbranch, dgamma);
  }
  norm_backward<Norm::rms>(ctx, dy, saved, gamma, {}, drop, packing, dx, dbranch, dgamma, {});
}

bool rms_norm_is_invertible(ConstTensorView gamma) {
  require(gamma.rank() == 1, "rms_norm_is_invertible: gamma must be [dim], got ", gamma.shape());
  if (gamma.device().is_cuda()) {
    Tensor host(gamma.shape(), gamma.dtype());
    copy(gamma, host.view());
    return rms_norm_is_invertible(host.view());
  }
  return visit_real(gamma.dtype(), [&]<class T>(Type<T>) {
    const T* g = gamma.as<T>();
    // Written so that NaN gives false.
    for (int64_t f = 0; f < gamma.numel(); ++f)
      if (!(std::abs(g[f]) >= T(0x1p-10) && std::abs(g[f]) <= std::numeric_limits<T>::max()))
        return false;
    return true;
  });
}

}  // namespace scgraft
