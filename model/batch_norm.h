// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "kernels/batch_norm.h"
#include "model/parameter.h"

namespace scgraft {

// Batch norm of rows with its parameters and with what it collected of the batches it was trained
// on; see kernels/batch_norm.h.
struct BatchNorm {
  Parameter* gamma = nullptr;  // null, as beta: 1 and 0
  Parameter* beta = nullptr;
  Parameter* mean = nullptr;     // [dim], collected
  Parameter* var = nullptr;      // [dim], collected, unbiased
  Parameter* batches = nullptr;  // i64 scalar in host memory: how many were collected
  double eps = 1e-5;
  double momentum = 0.1;

  struct Saved {
    ConstTensorView x, mean, var;
    bool of_batch = false;
  };

  bool trainable() const { return gamma != nullptr && (gamma->trainable() || beta->trainable()); }

  // y [rows, dim] = BN(x), by the moments of x or by those collected.
  //   of_batch  by those of x, which are collected too:  mean += momentum (mean of x - mean), and
  //             so is the variance, of which the unbiased one is taken
  // Keeps views in ctx.activations(). Throws DataError (E-BATCH-NORM) for the moments of one row.
  void forward(Context& ctx, ConstTensorView x, bool of_batch, TensorView y, Saved* saved);
  // dx [rows, dim] overwritten, may be dy; accumulates into gamma and beta when they are trainable.
  void backward(Context& ctx, const Saved& saved, ConstTensorView dy, TensorView dx);

 private:
  BatchNormMap map(ConstTensorView of_mean, ConstTensorView of_var) const;
};

}  // namespace scgraft
