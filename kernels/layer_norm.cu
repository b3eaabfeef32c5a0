// SPDX-License-Identifier: Apache-2.0
#include "kernels/layer_norm.h"
#include "kernels/norm_rows.cuh"

namespace scgraft::cuda {

void layer_norm(Context& ctx, ConstTensorView x, ConstTensorView branch, Dropout dropout,
                const Packing* packing, ConstTensorView gamma, ConstTensorView beta, double eps,
                TensorView y, TensorView rstd, TensorView xhat) {
  norm_forward<Norm::layer>(ctx, "layer_norm", x, branch, dropout, packing, gamma, beta, eps, y,
                            rstd, xhat);
}

void layer_norm_backward(Context& ctx, ConstTensorView dy, const LayerNormSaved& saved,
                         ConstTensorView gamma, ConstTensorView beta, Dropout dropout,
                         const Packing* packing, TensorView dx, TensorView dbranch,
                         TensorView dgamma, TensorView dbeta) {
  norm_backward<Norm::layer>(ctx, "layer_norm_backward", dy, saved, gamma, beta, dropout, packing,
                             dx, dbranch, dgamma, dbeta);
}

}  // namespace scgraft::cuda
