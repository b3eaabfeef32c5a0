// SPDX-License-Identifier: Apache-2.0
#include "kernels/norm_rows.cuh"
#include "kernels/rms_norm.h"

namespace scgraft::cuda {

void rms_norm(Context& ctx, ConstTensorView x, ConstTensorView branch, Dropout dropout,
              const Packing* packing, ConstTensorView gamma, double eps, TensorView y,
              TensorView rstd, TensorView xhat) {
  norm_forward<Norm::rms>(ctx, "rms_norm", x, branch, dropout, packing, gamma, {}, eps, y, rstd,
                          xhat);
}

void rms_norm_backward(Context& ctx, ConstTensorView dy, const RmsNormSaved& saved,
                       ConstTensorView gamma, Dropout dropout, const Packing* packing,
                       TensorView dx, TensorView dbranch, TensorView dgamma) {
  norm_backward<Norm::rms>(ctx, "rms_norm_backward", dy, saved, gamma, {}, dropout, packing, dx,
                           dbranch, dgamma, {});
}

}  // namespace scgraft::cuda
