// SPDX-License-Identifier: Apache-2.0
#include "kernels/add.h"
#include "kernels/require_tensor.h"
#include "kernels/rows.cuh"

namespace scgraft::cuda {
namespace {

// A thread owns eight elements and reads them before it writes: y may be a or b, and a may be null.
// Memory: reads a and b, writes y once; that bounds it.
template <class T, bool kVectors>
__global__ void __launch_bounds__(kFlatThreads)
    add_kernel(const T* a, const T* b, int64_t n, float scale, T* y) {
  const int64_t first = flat_first();
  if (first >= n) return;
  float left[kPiece] = {}, right[kPiece];
  if (a != nullptr) load_flat<kVectors>(a, first, n, left);
  load_flat<kVectors>(b, first, n, right);
  UNROLL
  for (int i = 0; i < kPiece; ++i) left[i] = fmaf(scale, right[i], left[i]);
  store_flat<kVectors>(y, first, n, left);
}

// A warp owns a row of x, so a row of y. Memory: reads x and y, writes y once; that bounds it.
template <class T, bool kVectors>
__global__ void __launch_bounds__(kRowThreads)
    add_rows_kernel(const T* x, const int32_t* index, int64_t n, int dim, T* y) {
  const int64_t i = row_of_warp();
  if (i >= n) return;
  const T* from = x + i * dim;
  T* to = y + int64_t{index[i]} * dim;
  for (int first = gpu::lane() * kPiece; first < dim; first += kWarpPieces) {
    float sum[kPiece], more[kPiece];
    load_piece<kVectors>(to, first, dim, sum);
    load_piece<kVectors>(from, first, dim, more);
    UNROLL
    for (int p = 0; p < kPiece; ++p) sum[p] += more[p];
    store_piece<kVectors>(to, first, dim, sum);
  }
}

}  // namespace

void add(Context& ctx, ConstTensorView a, ConstTensorView b, TensorView y, double scale) {
  const int64_t n = y.numel();
  visit_storage(y.dtype(), [&]<class T>(Type<T>) {
    const T* first = data_or_null<T>(a);
    const bool vectors = rows_fit_vectors(kPiece, first, b.as<T>(), y.as<T>());
    launch(ctx, "add", vectors ? add_kernel<T, true> : add_kernel<T, false>, flat_grid(n),
           kFlatThreads, 0, first, b.as<T>(), n, static_cast<float>(scale), y.as<T>());
  });
}

void add_rows(Context& ctx, ConstTensorView x, ConstTensorView index, TensorView y) {
  const int64_t n = x.dim(0);
  const int64_t dim = x.dim(1);
  visit_storage(y.dtype(), [&]<class T>(Type<T>) {
    const bool vectors = rows_fit_vectors(dim, x.as<T>(), y.as<T>());
    launch(ctx, "add_rows", vectors ? add_rows_kernel<T, true> : add_rows_kernel<T, false>,
           row_grid(n), kRowThreads, 0, x.as<T>(), index.as<int32_t>(), n, static_cast<int>(dim),
           y.as<T>());
  });
}

}  // namespace scgraft::cuda
