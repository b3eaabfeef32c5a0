// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "model/row_scale.h"
#include "model/scgpt/heads.h"

namespace scgraft {

// Expression of each token after a perturbation, from the value before it:
//
//   y[t] = a(x[t]) value[t] + b(x[t])        a, b as ExpressionDecoder
struct AffineDecoder {
  ExpressionDecoder coefficient, bias;

  struct Saved {
    ExpressionDecoder::Saved coefficient, bias;
    ConstTensorView a, b;  // [tokens, 1]
  };
  // x [tokens, dim], values [tokens] f32 -> y [tokens, 1], overwritten.
  void forward(Context& ctx, ConstTensorView x, ConstTensorView values, const Packing& rows,
               TensorView y, Saved& saved);
  // dy [tokens, 1] -> dx [tokens, dim], overwritten.
  void backward(Context& ctx, const Saved& saved, ConstTensorView dy, ConstTensorView values,
                const Packing& rows, TensorView dx);

 private:
  RowScale scale_;
};

}  // namespace scgraft
