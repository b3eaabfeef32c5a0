// SPDX-License-Identifier: Apache-2.0
#include "kernels/l2_normalize.h"

#include "kernels/require_tensor.h"
#include "kernels/rows.h"
#include "kernels/unit_rows.h"

namespace scgraft {
namespace {

constexpr double kFloor = 1e-12;

// Calls body(row) for every row.
template <class Body>
void for_each_row(Context& ctx, int64_t rows, Body&& body) {
  // Rows are cells here: too few of them to hand out in whole panels.
  constexpr int64_t kRowsPerUnit = 16;
  for_row_panels(
      ctx, rows,
      [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) body(r);
      },
      kRowsPerUnit);
}

template <class T>
void l2_normalize_cpu(Context& ctx, Array<const T, 2> x, Array<T, 2> y, T* norm) {
  const int64_t dim = x.dim(1);
  for_each_row(ctx, x.dim(0), [&](int64_t r) {
    const T length = unit_row(x.row(r), dim, kFloor, y.row(r));
    if (norm != nullptr) norm[r] = length;
  });
}

template <class T>
void l2_normalize_backward_cpu(Context& ctx, Array<const T, 2> y, const T* norm,
                               Array<const T, 2> dy, Array<T, 2> dx) {
  const int64_t dim = y.dim(1);
  for_each_row(ctx, y.dim(0), [&](int64_t r) {
    const T* out = y.row(r);
    const T* gradient = dy.row(r);
    T* to = dx.row(r);
    const T along = along_unit(out, gradient, norm[r], kFloor, dim);
    const T inverse = T(1) / norm[r];
#pragma omp simd
    for (int64_t d = 0; d < dim; ++d) to[d] = (gradient[d] - out[d] * along) * inverse;
  });
}

}  // namespace

void l2_normalize(Context& ctx, ConstTensorView x, TensorView y, TensorView norm) {
  const char* op = "l2_normalize";
  ctx.require_here(op, x, y, norm);
  require(x.rank() == 2, op, ": x must be [rows, dim], got ", x.shape());
  require_tensor(op, "y", y, x.shape(), x.dtype());
  require_optional(op, "norm", norm, {x.dim(0)}, sum_type(x.dtype()));
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda()) return cuda::l2_normalize(ctx, x, y, norm);
  }
  visit_real(x.dtype(), [&]<class T>(Type<T>) {
    l2_normalize_cpu<T>(ctx, x.as<T, 2>(), y.as<T, 2>(), data_or_null<T>(norm));
  });
}

void l2_normalize_backward(Context& ctx, ConstTensorView y, ConstTensorView norm,
                           ConstTensorView dy, TensorView dx) {
  const char* op = "l2_normalize_backward";
  ctx.require_here(op, y, norm, dy, dx);
  require(y.rank() == 2, op, ": y must be [rows, dim], got ", y.shape());
  require_tensor(op, "norm", norm, {y.dim(0)}, sum_type(y.dtype()));
  require_tensor(op, "dy", dy, y.shape(), y.dtype());
  require_tensor(op, "dx", dx, y.shape(), y.dtype());
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda()) return cuda::l2_normalize_backward(ctx, y, norm, dy, dx);
  }
  visit_real(y.dtype(), [&]<class T>(Type<T>) {
    l2_normalize_backward_cpu<T>(ctx, y.as<T, 2>(), norm.as<T>(), dy.as<T, 2>(), dx.as<T, 2>());
  });
}

}  // namespace scgraft
