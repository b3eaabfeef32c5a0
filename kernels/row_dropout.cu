// SPDX-License-Identifier: Apache-2.0
#include "kernels/dropout_rows.cuh"
#include "kernels/row_dropout.h"

namespace scgraft::cuda {
namespace {

// Features of one span of a row: a warp owns a span, a lane two pieces of it.
constexpr int kPieces = 2;
constexpr int kSpan = kPieces * kWarpPieces;

// x is read before y is written: y may be x.
// Memory: reads x, writes y; that bounds it.
template <class T, bool kVectors>
__global__ void __launch_bounds__(kRowThreads)
    row_dropout_kernel(const T* x, int64_t rows, int dim, DeviceDropout drop, T* y) {
  const int64_t row = row_of_warp();
  if (row >= rows) return;
  const RowPlace place = row_place(drop, row);
  const int begin = static_cast<int>(blockIdx.y) * kSpan + gpu::lane() * kPiece;
  float v[kPieces][kPiece];
  UNROLL
  for (int p = 0; p < kPieces; ++p)
    load_piece<kVectors>(x + row * dim, begin + p * kWarpPieces, dim, v[p]);
  UNROLL
  for (int p = 0; p < kPieces; ++p) {
    const int first = begin + p * kWarpPieces;
    if (first >= dim) continue;
    drop_piece(drop, place, first, v[p]);
    store_piece<kVectors>(y + row * dim, first, dim, v[p]);
  }
}

}  // namespace

void row_dropout(Context& ctx, ConstTensorView x, Dropout dropout, const Packing* packing,
                 TensorView y) {
  constexpr const char* kOp = "row_dropout";
  const int64_t rows = x.dim(0);
  const int64_t dim = x.dim(1);
  const RowDropout drop(kOp, ctx, dropout, packing, rows);
  visit_storage(x.dtype(), [&]<class T>(Type<T>) {
    const bool vectors = rows_fit_vectors(dim, x.as<T>(), y.as<T>());
    launch(ctx, kOp, vectors ? row_dropout_kernel<T, true> : row_dropout_kernel<T, false>,
           row_grid(rows, dim, kSpan), kRowThreads, 0, x.as<T>(), rows, static_cast<int>(dim),
           drop.on_device(ctx), y.as<T>());
  });
}

}  // namespace scgraft::cuda
