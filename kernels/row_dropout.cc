// SPDX-License-Identifier: Apache-2.0
#include "kernels/row_dropout.h"

#include "kernels/dropout_rows.h"
#include "kernels/rows.h"

namespace scgraft {

void row_dropout(Context& ctx, ConstTensorView x, Dropout dropout, const Packing* packing,
                 TensorView y) {
  constexpr const char* kOp = "row_dropout";
  ctx.require_here(kOp, x, y);
  require(x.rank() == 2, kOp, ": x must be [rows, dim], got ", x.shape());
  require(y.shape() == x.shape(), kOp, ": y must have the shape of x, ", x.shape(), ", got ",
          y.shape());
  require<TypeError>(y.dtype() == x.dtype(), kOp, ": x is ", x.dtype(), ", y is ", y.dtype(),
                     "; convert one of them first");
  const RowDropout drop(kOp, ctx, dropout, packing, x.dim(0));
  if (!drop.active()) {
    if (y.data() != x.data()) copy(ctx, x, y);
    return;
  }
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda()) return cuda::row_dropout(ctx, x, dropout, packing, y);
  }
  const int64_t dim = x.dim(1);
  visit_real(x.dtype(), [&]<class T>(Type<T>) {
    const auto in = x.as<T, 2>();
    const auto out = y.as<T, 2>();
    if constexpr (std::is_same_v<T, float>) {
      if (!ctx.reference()) {
        const Keep keep = drop.keep();
        for_row_panels(ctx, x.dim(0), [&](int64_t begin, int64_t end) {
          for (int64_t r = begin; r < end; ++r)
            drop.pieces(r, 0, dim, [&](int64_t f, int64_t n, const uint16_t* lanes) {
              for (int64_t i = 0; i < n; ++i) out(r, f + i) = keep(lanes[i], in(r, f + i));
            });
        });
        return;
      }
    }
    for (int64_t r = 0; r < x.dim(0); ++r)
      drop.each(
          r, dim, [&](int64_t f) { return in(r, f); },
          [&](int64_t f, T dropped) { out(r, f) = dropped; });
  });
}

}  // namespace scgraft
