// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "model/linear.h"

namespace scgraft {

// Class scores of a cell from its embedding of four parts (CellPooling::all):
//
//   logits = out(relu(hidden x))      hidden [256, 4 dim]
//
// Source: scPEFT's head for cell types on scFoundation, in its mode "all".
struct PartsClassifier {
  static constexpr int64_t kParts = 4;

  mutable Linear hidden, out;

  int64_t classes() const { return out.out(); }
  struct Saved {
    ConstTensorView x, h;
  };
  // x [cells, 4 dim] -> logits [cells, classes], overwritten. saved null: inference.
  void forward(Context& ctx, ConstTensorView x, const Packing& cells, TensorView logits,
               Saved* saved) const;
  // dlogits [cells, classes] -> dx [cells, 4 dim], overwritten; empty: not wanted.
  void backward(Context& ctx, const Saved& saved, ConstTensorView dlogits, const Packing& cells,
                TensorView dx);
};

}  // namespace scgraft
