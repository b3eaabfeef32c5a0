// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "model/linear.h"

namespace scgraft {

// Class scores of a cell from all of its rows: each row becomes one number, and those go through
// three layers.
//
//   z[t] = relu(row . x[t])      logits = fc3(relu(fc2(relu(fc1(z)))))      fc1 [512, rows of a
//   cell]
//
// Source: scBERT's head for cell types, whose first layer is a convolution of one row.
struct RowClassifier {
  mutable Linear row, fc1, fc2, fc3;

  int64_t classes() const { return fc3.out(); }
  struct Saved {
    ConstTensorView x, z, h1, h2;
  };
  // x [cells * rows, dim], cells of equal length, -> logits [cells, classes], overwritten.
  // cells: one row per cell.
  void forward(Context& ctx, ConstTensorView x, const Packing& tokens, const Packing& cells,
               TensorView logits, Saved* saved) const;
  // dlogits [cells, classes] -> dx [cells * rows, dim], overwritten; empty: not wanted.
  void backward(Context& ctx, const Saved& saved, ConstTensorView dlogits, const Packing& tokens,
                const Packing& cells, TensorView dx);
};

}  // namespace scgraft
