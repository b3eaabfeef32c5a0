// SPDX-License-Identifier: Apache-2.0
#include "model/row_scale.h"

#include <numeric>

#include "kernels/cast.h"
#include "kernels/pool.h"

namespace scgraft {

void RowScale::assign(Context& ctx, int64_t rows) {
  offsets_.resize(static_cast<size_t>(rows) + 1);
  std::iota(offsets_.begin(), offsets_.end(), 0);
  rows_.assign(ctx, Packing::over(offsets_));
}

void RowScale::apply(Context& ctx, ConstTensorView x, ConstTensorView weight, TensorView y) const {
  Arena::Scope scratch(ctx.scratch());
  if (weight.dtype() != x.dtype()) {
    const TensorView same = ctx.scratch().take(weight.shape(), x.dtype());
    cast(ctx, weight, same);
    weight = same;
  }
  pool_backward(ctx, Pooling::weighted, x, weight, rows_.packing(), y);
}

}  // namespace scgraft
