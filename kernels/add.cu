// SPDX-License-Identifier: Apache-2.0
#include "kernels/add.h"
#include "kernels/rows.cuh"

namespace scgraft::cuda {
namespace {

// A thread owns eight elements and reads them before it writes: y may be a or b.
// Memory: reads a and b, writes y once; that bounds it.
template <class T, bool kVectors>
__global__ void __launch_bounds__(kFlatThreads)
    add_kernel(const T* a, const T* b, int64_t n, T* y) {
  const int64_t first = flat_first();
  if (first >= n) return;
  float left[kPiece], right[kPiece];
  load_flat<kVectors>(a, first, n, left);
  load_flat<kVectors>(b, first, n, right);
  UNROLL
  for (int i = 0; i < kPiece; ++i) left[i] += right[i];
  store_flat<kVectors>(y, first, n, left);
}

}  // namespace

void add(Context& ctx, ConstTensorView a, ConstTensorView b, TensorView y) {
  const int64_t n = y.numel();
  visit_storage(y.dtype(), [&]<class T>(Type<T>) {
    const bool vectors = rows_fit_vectors(kPiece, a.as<T>(), b.as<T>(), y.as<T>());
    launch(ctx, "add", vectors ? add_kernel<T, true> : add_kernel<T, false>, flat_grid(n),
           kFlatThreads, 0, a.as<T>(), b.as<T>(), n, y.as<T>());
  });
}

}  // namespace scgraft::cuda
