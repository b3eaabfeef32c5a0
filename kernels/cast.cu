// SPDX-License-Identifier: Apache-2.0
#include "kernels/cast.h"
#include "kernels/rows.cuh"

namespace scgraft::cuda {
namespace {

// A thread owns eight elements. Memory: reads x, writes y once; that bounds it.
template <class From, class To, bool kVectors>
__global__ void __launch_bounds__(kFlatThreads) cast_kernel(const From* x, int64_t n, To* y) {
  const int64_t first = flat_first();
  if (first >= n) return;
  float v[kPiece];
  load_flat<kVectors>(x, first, n, v);
  store_flat<kVectors>(y, first, n, v);
}

}  // namespace

void cast(Context& ctx, ConstTensorView x, TensorView y) {
  const int64_t n = y.numel();
  visit_storage(x.dtype(), [&]<class From>(Type<From>) {
    visit_storage(y.dtype(), [&]<class To>(Type<To>) {
      const bool vectors = rows_fit_vectors(kPiece, x.as<From>(), y.as<To>());
      launch(ctx, "cast", vectors ? cast_kernel<From, To, true> : cast_kernel<From, To, false>,
             flat_grid(n), kFlatThreads, 0, x.as<From>(), n, y.as<To>());
    });
  });
}

}  // namespace scgraft::cuda
