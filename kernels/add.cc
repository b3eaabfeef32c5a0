// SPDX-License-Identifier: Apache-2.0
#include "kernels/add.h"

#include "kernels/rows.h"

namespace scgraft {
namespace {

template <class T>
void add_range(const T* a, const T* b, T* y, int64_t begin, int64_t end) {
#pragma omp simd
  for (int64_t i = begin; i < end; ++i) y[i] = a[i] + b[i];
}

}  // namespace

void add(Context& ctx, ConstTensorView a, ConstTensorView b, TensorView y) {
  ctx.require_here("add", a, b, y);
  require(a.shape() == b.shape() && a.shape() == y.shape(),
          "add: a, b and y must have one shape, got ", a.shape(), ", ", b.shape(), " and ",
          y.shape());
  require<TypeError>(a.dtype() == b.dtype() && a.dtype() == y.dtype(),
                     "add: a, b and y must have one type, got ", a.dtype(), ", ", b.dtype(),
                     " and ", y.dtype(), "; convert them first");
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda()) return cuda::add(ctx, a, b, y);
  }
  visit_real(a.dtype(), [&]<class T>(Type<T>) {
    const T* pa = a.as<T>();
    const T* pb = b.as<T>();
    T* py = y.as<T>();
    if (ctx.reference()) {
      add_range(pa, pb, py, 0, y.numel());
      return;
    }
    for_element_blocks(ctx, y.numel(),
                       [&](int64_t begin, int64_t end) { add_range(pa, pb, py, begin, end); });
  });
}

}  // namespace scgraft
