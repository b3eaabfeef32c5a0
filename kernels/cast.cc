// SPDX-License-Identifier: Apache-2.0
#include "kernels/cast.h"

#include "kernels/rows.h"

namespace scgraft {
namespace {

template <class F>
void visit_floating(DType t, F&& f) {
  if (t == DType::bf16) return f(Type<bf16>{});
  if (t == DType::f16) return f(Type<f16>{});
  visit_real(t, f);
}

template <class From, class To>
To cast_one(From x) {
  if constexpr (sizeof(From) == 2)
    return static_cast<To>(static_cast<float>(x));
  else if constexpr (sizeof(To) == 2)
    return To(static_cast<float>(x));
  else
    return static_cast<To>(x);
}

}  // namespace

void cast(Context& ctx, ConstTensorView x, TensorView y) {
  ctx.require_here("cast", x, y);
  require(x.shape() == y.shape(), "cast: x and y must have one shape, got ", x.shape(), " and ",
          y.shape());
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda()) return cuda::cast(ctx, x, y);
  }
  visit_floating(x.dtype(), [&]<class From>(Type<From>) {
    visit_floating(y.dtype(), [&]<class To>(Type<To>) {
      const From* from = x.as<From>();
      To* to = y.as<To>();
      for_element_blocks(ctx, y.numel(), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) to[i] = cast_one<From, To>(from[i]);
      });
    });
  });
}

}  // namespace scgraft
