// SPDX-License-Identifier: Apache-2.0
#include "kernels/add.h"

#include "kernels/require_tensor.h"
#include "kernels/rows.h"

namespace scgraft {
namespace {

template <class T>
void add_range(const T* a, const T* b, T* y, int64_t begin, int64_t end) {
#pragma omp simd
  for (int64_t i = begin; i < end; ++i) y[i] = a[i] + b[i];
}

template <class T>
void scaled_range(const T* a, const T* b, T scale, T* y, int64_t begin, int64_t end) {
#pragma omp simd
  for (int64_t i = begin; i < end; ++i) y[i] = (a == nullptr ? T(0) : a[i]) + scale * b[i];
}

}  // namespace

void add(Context& ctx, ConstTensorView a, ConstTensorView b, TensorView y, double scale) {
  ctx.require_here("add", a, b, y);
  const bool one = a.empty();
  require((one || a.shape() == b.shape()) && b.shape() == y.shape(),
          "add: a, b and y must have one shape, got ", a.shape(), ", ", b.shape(), " and ",
          y.shape());
  require<TypeError>((one || a.dtype() == b.dtype()) && b.dtype() == y.dtype(),
                     "add: a, b and y must have one type, got ", a.dtype(), ", ", b.dtype(),
                     " and ", y.dtype(), "; convert them first");
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda()) return cuda::add(ctx, a, b, y, scale);
  }
  visit_real(b.dtype(), [&]<class T>(Type<T>) {
    const T* pa = one ? nullptr : a.as<T>();
    const T* pb = b.as<T>();
    T* py = y.as<T>();
    const auto range = [&](int64_t begin, int64_t end) {
      if (one || scale != 1)
        scaled_range(pa, pb, static_cast<T>(scale), py, begin, end);
      else
        add_range(pa, pb, py, begin, end);
    };
    if (ctx.reference()) return range(0, y.numel());
    for_element_blocks(ctx, y.numel(), range);
  });
}

void add_rows(Context& ctx, ConstTensorView x, ConstTensorView index, TensorView y) {
  const char* op = "add_rows";
  ctx.require_here(op, x, index, y);
  require(x.rank() == 2 && y.rank() == 2 && x.dim(1) == y.dim(1), op,
          ": x and y must be rows of one width, got ", x.shape(), " and ", y.shape());
  require_tensor(op, "index", index, {x.dim(0)}, DType::i32);
  require<TypeError>(x.dtype() == y.dtype(), op, ": x and y must have one type, got ", x.dtype(),
                     " and ", y.dtype());
  if (x.numel() == 0) return;
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda()) return cuda::add_rows(ctx, x, index, y);
  }
  const int32_t* at = index.as<int32_t>();
  visit_real(x.dtype(), [&]<class T>(Type<T>) {
    const auto from = x.as<T, 2>();
    const auto to = y.as<T, 2>();
    for_row_panels(ctx, x.dim(0), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        add_range<T>(to.row(at[i]), from.row(i), to.row(at[i]), 0, x.dim(1));
    });
  });
}

}  // namespace scgraft
