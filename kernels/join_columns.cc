// SPDX-License-Identifier: Apache-2.0
#include "kernels/join_columns.h"

#include <algorithm>

#include "kernels/require_tensor.h"
#include "kernels/rows.h"

namespace scgraft {

void join_columns(Context& ctx, ConstTensorView a, ConstTensorView b, TensorView y) {
  constexpr const char* kOp = "join_columns";
  ctx.require_here(kOp, a, b, y);
  require(a.rank() == 2 && a.dim(1) > 0, kOp, ": a must be [rows, n], got ", a.shape());
  require(b.rank() == 2 && b.dim(1) > 0, kOp, ": b must be [rows, m], got ", b.shape());
  require_tensor(kOp, "b", b, {a.dim(0), b.dim(1)}, a.dtype());
  require_tensor(kOp, "y", y, {a.dim(0), a.dim(1) + b.dim(1)}, a.dtype());
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda()) return cuda::join_columns(ctx, a, b, y);
  }
  visit_real(y.dtype(), [&]<class T>(Type<T>) {
    const auto left = a.as<T, 2>();
    const auto right = b.as<T, 2>();
    const auto out = y.as<T, 2>();
    for_row_panels(ctx, y.dim(0), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t)
        std::copy_n(right.row(t), right.dim(1), std::copy_n(left.row(t), left.dim(1), out.row(t)));
    });
  });
}

void split_columns(Context& ctx, ConstTensorView y, TensorView a, TensorView b) {
  constexpr const char* kOp = "split_columns";
  ctx.require_here(kOp, y, a, b);
  require(y.rank() == 2, kOp, ": y must be [rows, n + m], got ", y.shape());
  require(a.rank() == 2 || b.rank() == 2, kOp, ": at least one of a and b is wanted");
  const int64_t n = a.rank() == 2 ? a.dim(1) : y.dim(1) - b.dim(1);
  require(n > 0 && n < y.dim(1), kOp, ": a and b need columns each, got ", n, " of ", y.dim(1));
  if (a.rank() == 2) require_tensor(kOp, "a", a, {y.dim(0), n}, y.dtype());
  if (b.rank() == 2) require_tensor(kOp, "b", b, {y.dim(0), y.dim(1) - n}, y.dtype());
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda()) return cuda::split_columns(ctx, y, a, b);
  }
  visit_real(y.dtype(), [&]<class T>(Type<T>) {
    const auto in = y.as<T, 2>();
    T* left = data_or_null<T>(a);
    T* right = data_or_null<T>(b);
    const int64_t m = y.dim(1) - n;
    for_row_panels(ctx, y.dim(0), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        if (left != nullptr) std::copy_n(in.row(t), n, left + t * n);
        if (right != nullptr) std::copy_n(in.row(t) + n, m, right + t * m);
      }
    });
  });
}

}  // namespace scgraft
