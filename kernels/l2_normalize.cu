// SPDX-License-Identifier: Apache-2.0
#include "kernels/l2_normalize.h"
#include "kernels/require_tensor.h"
#include "kernels/unit_rows.cuh"

namespace scgraft::cuda {
namespace {

constexpr float kFloor = 1e-12f;

// A warp owns a row; a lane reads its pieces before it writes them: dx may be dy.
// Memory: reads y and dy once (again from cache), writes dx; that bounds it.
template <class T, bool kVectors>
__global__ void __launch_bounds__(kRowThreads)
    l2_normalize_backward_kernel(const T* y, const float* norm, const T* dy, int64_t rows, int dim,
                                 T* dx) {
  const int64_t row = row_of_warp();
  if (row >= rows) return;
  y += row * dim, dy += row * dim, dx += row * dim;
  const float length = norm[row];
  // At the floor the length is a constant, and nothing is projected out.
  float along = warp_dot<kVectors>(y, dy, dim);
  if (!(length > kFloor)) along = 0;
  const float inverse = 1.0f / length;
  for (int first = gpu::lane() * kPiece; first < dim; first += kWarpPieces) {
    float out[kPiece], v[kPiece];
    load_piece<kVectors>(y, first, dim, out);
    load_piece<kVectors>(dy, first, dim, v);
    UNROLL
    for (int i = 0; i < kPiece; ++i) v[i] = (v[i] - out[i] * along) * inverse;
    store_piece<kVectors>(dx, first, dim, v);
  }
}

}  // namespace

void l2_normalize(Context& ctx, ConstTensorView x, TensorView y, TensorView norm) {
  const int64_t rows = x.dim(0);
  const int64_t dim = x.dim(1);
  visit_storage(x.dtype(), [&]<class T>(Type<T>) {
    const bool vectors = rows_fit_vectors(dim, x.as<T>(), y.as<T>());
    launch(ctx, "l2_normalize",
           vectors ? unit_rows_kernel<T, T, true> : unit_rows_kernel<T, T, false>, row_grid(rows),
           kRowThreads, 0, x.as<T>(), rows, static_cast<int>(dim), kFloor, y.as<T>(),
           data_or_null<float>(norm));
  });
}

void l2_normalize_backward(Context& ctx, ConstTensorView y, ConstTensorView norm,
                           ConstTensorView dy, TensorView dx) {
  const int64_t rows = y.dim(0);
  const int64_t dim = y.dim(1);
  visit_storage(y.dtype(), [&]<class T>(Type<T>) {
    const bool vectors = rows_fit_vectors(dim, y.as<T>(), dy.as<T>(), dx.as<T>());
    launch(ctx, "l2_normalize_backward",
           vectors ? l2_normalize_backward_kernel<T, true> : l2_normalize_backward_kernel<T, false>,
           row_grid(rows), kRowThreads, 0, y.as<T>(), norm.as<float>(), dy.as<T>(), rows,
           static_cast<int>(dim), dx.as<T>());
  });
}

}  // namespace scgraft::cuda
