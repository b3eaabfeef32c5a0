// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "kernels/softmax.h"
#include "kernels/unit_rows.cuh"

namespace scgraft::cuda {
namespace {

// A warp owns a row; a lane reads its pieces before it writes them: y may be x. The exponentials
// are formed twice, so that no row has to fit into registers.
// Memory: reads x once (twice again from cache), writes y; that bounds it.
template <class T, bool kVectors>
__global__ void __launch_bounds__(kRowThreads)
    softmax_kernel(const T* x, int64_t rows, int dim, T* y) {
  const int64_t row = row_of_warp();
  if (row >= rows) return;
  x += row * dim, y += row * dim;
  float largest = -INFINITY;
  for (int first = gpu::lane() * kPiece; first < dim; first += kWarpPieces) {
    float v[kPiece];
    load_piece<kVectors>(x, first, dim, v);
    UNROLL
    for (int i = 0; i < kPiece; ++i)
      if (first + i < dim) largest = fmaxf(largest, v[i]);
  }
  const float shift = gpu::warp_max(largest);
  float sum = 0;
  for (int first = gpu::lane() * kPiece; first < dim; first += kWarpPieces) {
    float v[kPiece];
    load_piece<kVectors>(x, first, dim, v);
    UNROLL
    for (int i = 0; i < kPiece; ++i)
      if (first + i < dim) sum += expf(v[i] - shift);
  }
  sum = gpu::warp_sum(sum);
  for (int first = gpu::lane() * kPiece; first < dim; first += kWarpPieces) {
    float v[kPiece];
    load_piece<kVectors>(x, first, dim, v);
    UNROLL
    for (int i = 0; i < kPiece; ++i) v[i] = expf(v[i] - shift) / sum;
    store_piece<kVectors>(y, first, dim, v);
  }
}

// A warp owns a row; a lane reads its pieces before it writes them: dx may be dy.
// Memory: reads y and dy once (again from cache), writes dx; that bounds it.
template <class T, bool kVectors>
__global__ void __launch_bounds__(kRowThreads)
    softmax_backward_kernel(const T* y, const T* dy, int64_t rows, int dim, T* dx) {
  const int64_t row = row_of_warp();
  if (row >= rows) return;
  y += row * dim, dy += row * dim, dx += row * dim;
  const float along = warp_dot<kVectors>(y, dy, dim);
  for (int first = gpu::lane() * kPiece; first < dim; first += kWarpPieces) {
    float out[kPiece], v[kPiece];
    load_piece<kVectors>(y, first, dim, out);
    load_piece<kVectors>(dy, first, dim, v);
    UNROLL
    for (int i = 0; i < kPiece; ++i) v[i] = out[i] * (v[i] - along);
    store_piece<kVectors>(dx, first, dim, v);
  }
}

}  // namespace

void softmax(Context& ctx, ConstTensorView x, TensorView y) {
  const int64_t rows = x.dim(0);
  const int64_t dim = x.dim(1);
  visit_storage(x.dtype(), [&]<class T>(Type<T>) {
    const bool vectors = rows_fit_vectors(dim, x.as<T>(), y.as<T>());
    launch(ctx, "softmax", vectors ? softmax_kernel<T, true> : softmax_kernel<T, false>,
           row_grid(rows), kRowThreads, 0, x.as<T>(), rows, static_cast<int>(dim), y.as<T>());
  });
}

void softmax_backward(Context& ctx, ConstTensorView y, ConstTensorView dy, TensorView dx) {
  const int64_t rows = y.dim(0);
  const int64_t dim = y.dim(1);
  visit_storage(y.dtype(), [&]<class T>(Type<T>) {
    const bool vectors = rows_fit_vectors(dim, y.as<T>(), dy.as<T>(), dx.as<T>());
    launch(ctx, "softmax_backward",
           vectors ? softmax_backward_kernel<T, true> : softmax_backward_kernel<T, false>,
           row_grid(rows), kRowThreads, 0, y.as<T>(), dy.as<T>(), rows, static_cast<int>(dim),
           dx.as<T>());
  });
}

}  // namespace scgraft::cuda
