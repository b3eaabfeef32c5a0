// SPDX-License-Identifier: Apache-2.0
#include "kernels/cross_entropy.h"

#include <algorithm>
#include <cmath>

#include "kernels/require_tensor.h"
#include "kernels/rows.h"

namespace scgraft {
namespace {

constexpr int64_t kRowsPerUnit = 8;

// One row; the sum over classes is kept in f64, because with very many classes it adds small terms
// to a large one.
template <class T>
T cross_entropy_row(const T* logits, int64_t classes, int64_t label, T weight, double scale,
                    T* dlogits) {
  T largest = logits[0];
  for (int64_t c = 1; c < classes; ++c) largest = std::max(largest, logits[c]);
  const T at_label = logits[label] - largest;
  double sum = 0;
  for (int64_t c = 0; c < classes; ++c) {
    const T e = std::exp(logits[c] - largest);
    sum += static_cast<double>(e);
    if (dlogits != nullptr) dlogits[c] = e;
  }
  if (dlogits != nullptr) {
    const T row_scale = static_cast<T>(scale * static_cast<double>(weight));
    const T inverse = static_cast<T>(1 / sum);
    for (int64_t c = 0; c < classes; ++c)
      dlogits[c] = row_scale * (dlogits[c] * inverse - (c == label ? T(1) : T(0)));
  }
  return weight * static_cast<T>(std::log(sum) - static_cast<double>(at_label));
}

}  // namespace

void cross_entropy(Context& ctx, ConstTensorView logits, ConstTensorView labels,
                   ConstTensorView weight, double scale, TensorView loss, TensorView dlogits,
                   ConstTensorView factor) {
  const char* op = "cross_entropy";
  ctx.require_here(op, logits, labels, weight, loss, dlogits, factor);
  require(logits.rank() == 2, op, ": logits must be [rows, classes], got ", logits.shape());
  const int64_t rows = logits.dim(0);
  const int64_t classes = logits.dim(1);
  require_tensor(op, "labels", labels, {rows}, DType::i32);
  require_optional(op, "weight", weight, {classes}, sum_type(logits.dtype()));
  require_tensor(op, "loss", loss, {rows}, sum_type(logits.dtype()));
  require_optional(op, "dlogits", dlogits, logits.shape(), logits.dtype());
  require_optional(op, "factor", factor, {1}, DType::f64);
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda())
      return cuda::cross_entropy(ctx, logits, labels, weight, scale, loss, dlogits, factor);
  }
  if (!factor.empty()) scale *= *factor.as<double>();
  const int32_t* label = labels.as<int32_t>();
  for (int64_t b = 0; b < rows; ++b)
    require(label[b] < classes, op, ": label ", label[b], " of row ", b, " must be below ", classes,
            ", the number of classes");

  visit_real(logits.dtype(), [&]<class T>(Type<T>) {
    const Array<const T, 2> in = logits.as<T, 2>();
    const T* weights = data_or_null<T>(weight);
    T* out = loss.as<T>();
    T* gradient = data_or_null<T>(dlogits);
    const auto some_rows = [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        T* row = gradient == nullptr ? nullptr : gradient + b * classes;
        if (label[b] < 0) {
          out[b] = 0;
          if (row != nullptr) std::fill_n(row, classes, T(0));
          continue;
        }
        const T w = weights == nullptr ? T(1) : weights[label[b]];
        out[b] = cross_entropy_row<T>(in.row(b), classes, label[b], w, scale, row);
      }
    };
    for_row_panels(ctx, rows, some_rows, kRowsPerUnit);
  });
}

}  // namespace scgraft
