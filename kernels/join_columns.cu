// SPDX-License-Identifier: Apache-2.0
#include "kernels/join_columns.h"
#include "kernels/require_tensor.h"
#include "kernels/rows.cuh"

namespace scgraft::cuda {
namespace {

// Columns [begin, begin + n) of a wide tensor of `dim`, one side of a join.
template <class T>
struct Side {
  const T* from;  // rows `from_dim` apart
  T* to;          // rows `to_dim` apart
  int64_t from_dim;
  int64_t to_dim;
  int n;
};

// A warp owns a row of one side (blockIdx.y). Memory: reads and writes everything once; that bounds
// it.
template <class T, bool kVectors>
__global__ void __launch_bounds__(kRowThreads)
    copy_columns_kernel(Side<T> left, Side<T> right, int64_t rows) {
  const int64_t row = row_of_warp();
  if (row >= rows) return;
  const Side<T> side = blockIdx.y == 0 ? left : right;
  if (side.to == nullptr) return;
  for (int first = gpu::lane() * kPiece; first < side.n; first += kWarpPieces) {
    float v[kPiece];
    load_piece<kVectors>(side.from + row * side.from_dim, first, side.n, v);
    store_piece<kVectors>(side.to + row * side.to_dim, first, side.n, v);
  }
}

template <class T>
void copy_columns(Context& ctx, const char* op, const Side<T>& left, const Side<T>& right,
                  int64_t rows) {
  const bool vectors = rows_fit_vectors(left.n, left.from, left.to) &&
                       rows_fit_vectors(right.n, right.from, right.to);
  launch(ctx, op, vectors ? copy_columns_kernel<T, true> : copy_columns_kernel<T, false>,
         {.x = ceil_div(rows, kRowWarps), .y = 2}, kRowThreads, 0, left, right, rows);
}

}  // namespace

void join_columns(Context& ctx, ConstTensorView a, ConstTensorView b, TensorView y) {
  const int64_t n = a.dim(1), m = b.dim(1);
  visit_storage(y.dtype(), [&]<class T>(Type<T>) {
    T* out = y.as<T>();
    copy_columns<T>(ctx, "join_columns", {a.as<T>(), out, n, n + m, static_cast<int>(n)},
                    {b.as<T>(), out + n, m, n + m, static_cast<int>(m)}, y.dim(0));
  });
}

void split_columns(Context& ctx, ConstTensorView y, TensorView a, TensorView b) {
  const int64_t dim = y.dim(1);
  const int64_t n = a.rank() == 2 ? a.dim(1) : dim - b.dim(1);
  visit_storage(y.dtype(), [&]<class T>(Type<T>) {
    const T* in = y.as<T>();
    copy_columns<T>(ctx, "split_columns", {in, data_or_null<T>(a), dim, n, static_cast<int>(n)},
                    {in + n, data_or_null<T>(b), dim, dim - n, static_cast<int>(dim - n)},
                    y.dim(0));
  });
}

}  // namespace scgraft::cuda
