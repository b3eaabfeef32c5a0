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
//   logits   [rows, classes]  f32 or f64, on CUDA f32, bf16 or f16
//   labels   [rows]           i32; a row with label < 0 has loss 0 and gradient 0
//   weight   [classes]        sum_type() of logits, or empty (all 1)
//   loss     [rows]           sum_type() of logits, overwritten (not scaled)
//   dlogits  [rows, classes]  type of logits, overwritten; empty when not wanted; may be logits
//   factor   [1]              f64, another factor of dlogits, known on the device only; empty: 1
// The caller divides by the sum of w over the whole batch (scale = 1 / that sum), which makes this
// the weighted mean of the source.
// Throws ShapeError or TypeError when something does not fit or a label is >= classes. On CUDA the
// host does not wait to look at labels: such a row gets NaN as its loss and gradient.
// Source: torch.nn.CrossEntropyLoss.
void cross_entropy(Context& ctx, ConstTensorView logits, ConstTensorView labels,
                   ConstTensorView weight, double scale, TensorView loss, TensorView dlogits,
                   ConstTensorView factor = {});

namespace cuda {  // in cross_entropy.cu; cross_entropy.cc calls this after its checks
void cross_entropy(Context& ctx, ConstTensorView logits, ConstTensorView labels,
                   ConstTensorView weight, double scale, TensorView loss, TensorView dlogits,
                   ConstTensorView factor);
}  // namespace cuda

}  // namespace scgraft
