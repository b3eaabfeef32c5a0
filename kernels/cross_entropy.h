// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "runtime/context.h"
#include "runtime/tensor_view.h"

namespace scgraft {

// Class-weighted cross entropy of rows of logits, and its gradient in the same pass:
//
//   loss[b]    = w[label_b] * (log(sum_c exp(logits[b, c])) - logits[b, label_b])
//   dlogits[b] = scale * w[label_b] * (softmax(logits[b]) - onehot(label_b))
//
//   logits   [rows, classes]  f32 or f64
//   labels   [rows]           i32; a row with label < 0 has loss 0 and gradient 0
//   weight   [classes]        type of logits, or empty (all 1)
//   loss     [rows]           overwritten (not scaled)
//   dlogits  [rows, classes]  overwritten; empty when not wanted; may be logits
// The caller divides by the sum of w over the whole batch (scale = 1 / that sum), which makes this
// the weighted mean of the source.
// Throws ShapeError or TypeError when something does not fit or a label is >= classes.
// Source: torch.nn.CrossEntropyLoss.
void cross_entropy(Context& ctx, ConstTensorView logits, ConstTensorView labels,
                   ConstTensorView weight, double scale, TensorView loss, TensorView dlogits);

}  // namespace scgraft
