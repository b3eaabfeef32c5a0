// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "kernels/layer_norm.h"
#include "model/parameter.h"

namespace scgraft {

// Layer norm of a residual sum with its parameters; see kernels/layer_norm.h.
struct LayerNorm {
  Parameter* gamma = nullptr;
  Parameter* beta = nullptr;
  double eps = 1e-5;

  struct Saved {
    ConstTensorView y;     // empty when xhat is kept
    ConstTensorView xhat;  // kept when y does not determine it, or gamma is trained
    ConstTensorView rstd;
  };

  bool trainable() const { return gamma->trainable() || beta->trainable(); }

  // y [rows, dim] = LN(x + drop(branch)); saved views live in ctx.activations(); null: inference.
  void forward(Context& ctx, ConstTensorView x, ConstTensorView branch, Dropout dropout,
               const Packing* packing, TensorView y, Saved* saved) const;
  // dx = gradient of x, dbranch = gradient of branch (empty: not wanted). Overwrites both,
  // accumulates into gamma and beta when they are trainable. dx may be dy.
  void backward(Context& ctx, const Saved& saved, ConstTensorView dy, Dropout dropout,
                const Packing* packing, TensorView dx, TensorView dbranch);

  // To be called after parameters moved, and after an optimizer step.
  void values_changed() { judged_ = nullptr; }

 private:
  bool y_determines_xhat() const;

  // To look at gamma and beta the host would wait for a CUDA device in every step: what it saw of
  // frozen values is kept.
  mutable const void* judged_ = nullptr;  // gamma when it looked
  mutable bool invertible_ = false;
};

}  // namespace scgraft
