// SPDX-License-Identifier: Apache-2.0
#include "kernels/cell_dot.h"

#include "kernels/ordered_sum.h"
#include "kernels/require_tensor.h"
#include "kernels/rows.h"

namespace scgraft {
namespace {

void check(const char* op, ConstTensorView x, ConstTensorView c, const Packing& packing) {
  require(x.rank() == 2, op, ": x must be [tokens, dim], got ", x.shape());
  require_packed(op, "x", packing, x.dim(0));
  require_tensor(op, "c", c, {packing.cells(), x.dim(1)}, x.dtype());
}

}  // namespace

void cell_dot(Context& ctx, ConstTensorView x, ConstTensorView c, const Packing& packing,
              TensorView y) {
  const char* op = "cell_dot";
  ctx.require_here(op, x, c, y);
  check(op, x, c, packing);
  require_tensor(op, "y", y, {x.dim(0)}, x.dtype());
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda()) return cuda::cell_dot(ctx, x, c, packing, y);
  }
  visit_real(x.dtype(), [&]<class T>(Type<T>) {
    const Array<const T, 2> rows = x.as<T, 2>();
    const Array<const T, 2> cells = c.as<T, 2>();
    T* out = y.as<T>();
    for_each_run(ctx, packing, [&](int64_t cell, int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t)
        out[t] = ordered_dot(rows.row(t), cells.row(cell), rows.dim(1));
    });
  });
}

void cell_dot_backward(Context& ctx, ConstTensorView x, ConstTensorView c, ConstTensorView dy,
                       const Packing& packing, TensorView dx, TensorView dc) {
  const char* op = "cell_dot_backward";
  ctx.require_here(op, x, c, dy, dx, dc);
  check(op, x, c, packing);
  require_tensor(op, "dy", dy, {x.dim(0)}, x.dtype());
  require_optional(op, "dx", dx, x.shape(), x.dtype());
  require_optional(op, "dc", dc, c.shape(), x.dtype());
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda()) return cuda::cell_dot_backward(ctx, x, c, dy, packing, dx, dc);
  }
  visit_real(x.dtype(), [&]<class T>(Type<T>) {
    const T* gradient = dy.as<T>();
    if (!dc.empty())
      sum_cell_rows<T>(
          ctx, packing, x.as<T, 2>(), [=](int64_t t) { return gradient[t]; }, dc.as<T, 2>());
    if (dx.empty()) return;
    const Array<const T, 2> cells = c.as<T, 2>();
    const Array<T, 2> to = dx.as<T, 2>();
    for_each_run(ctx, packing, [&](int64_t cell, int64_t begin, int64_t end) {
      const T* from = cells.row(cell);
      for (int64_t t = begin; t < end; ++t) {
        T* row = to.row(t);
        const T g = gradient[t];
#pragma omp simd
        for (int64_t d = 0; d < cells.dim(1); ++d) row[d] = g * from[d];
      }
    });
  });
}

}  // namespace scgraft
