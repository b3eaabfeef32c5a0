// SPDX-License-Identifier: Apache-2.0
#include "kernels/dropout_rows.cuh"
#include "kernels/relu_dropout.h"
#include "kernels/require_tensor.h"

namespace scgraft::cuda {
namespace {

// Features of one span of a row: a warp owns a span, a lane two pieces of it.
constexpr int kPieces = 2;
constexpr int kSpan = kPieces * kWarpPieces;

// A piece is one byte of `bits`, so a lane makes its bytes alone. x is read before y is written:
// y may be x.
// Memory: reads x, writes y and one bit per element; that bounds it.
template <class T, bool kVectors>
__global__ void __launch_bounds__(kRowThreads)
    relu_dropout_kernel(const T* x, int64_t rows, int dim, DeviceDropout drop, T* y,
                        uint8_t* bits) {
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
    // Not x > 0 ? x : 0, so that NaN comes out as NaN.
    UNROLL
    for (int i = 0; i < kPiece; ++i) v[p][i] = v[p][i] <= 0 ? 0.0f : v[p][i];
    if (drop.active) drop_piece(drop, place, first, v[p]);
    store_piece<kVectors>(y + row * dim, first, dim, v[p]);
    if (bits == nullptr) continue;
    uint32_t passes = 0;
    UNROLL
    for (int i = 0; i < kPiece; ++i) passes |= static_cast<uint32_t>(v[p][i] > 0) << i;
    bits[row * ((dim + kPiece - 1) / kPiece) + first / kPiece] = static_cast<uint8_t>(passes);
  }
}

// Memory: reads dy and one bit per element, writes dx; that bounds it. dx may be dy.
template <class T, bool kVectors>
__global__ void __launch_bounds__(kRowThreads)
    relu_dropout_backward_kernel(const T* dy, const uint8_t* bits, int64_t rows, int dim,
                                 float scale, T* dx) {
  const int64_t row = row_of_warp();
  if (row >= rows) return;
  const int begin = static_cast<int>(blockIdx.y) * kSpan + gpu::lane() * kPiece;
  float v[kPieces][kPiece];
  uint32_t passes[kPieces] = {};
  UNROLL
  for (int p = 0; p < kPieces; ++p) {
    const int first = begin + p * kWarpPieces;
    load_piece<kVectors>(dy + row * dim, first, dim, v[p]);
    if (first < dim) passes[p] = bits[row * ((dim + kPiece - 1) / kPiece) + first / kPiece];
  }
  UNROLL
  for (int p = 0; p < kPieces; ++p) {
    UNROLL
    for (int i = 0; i < kPiece; ++i) v[p][i] = (passes[p] >> i & 1) != 0 ? v[p][i] * scale : 0.0f;
    store_piece<kVectors>(dx + row * dim, begin + p * kWarpPieces, dim, v[p]);
  }
}

}  // namespace

void relu_dropout(Context& ctx, ConstTensorView x, Dropout dropout, const Packing* packing,
                  TensorView y, TensorView bits) {
  constexpr const char* kOp = "relu_dropout";
  const int64_t rows = x.dim(0);
  const int64_t dim = x.dim(1);
  const RowDropout drop(kOp, ctx, dropout, packing, rows);
  visit_storage(x.dtype(), [&]<class T>(Type<T>) {
    const bool vectors = rows_fit_vectors(dim, x.as<T>(), y.as<T>());
    launch(ctx, kOp, vectors ? relu_dropout_kernel<T, true> : relu_dropout_kernel<T, false>,
           row_grid(rows, dim, kSpan), kRowThreads, 0, x.as<T>(), rows, static_cast<int>(dim),
           drop.on_device(ctx), y.as<T>(), data_or_null<uint8_t>(bits));
  });
}

void relu_dropout_backward(Context& ctx, ConstTensorView dy, ConstTensorView bits, Dropout dropout,
                           TensorView dx) {
  const int64_t rows = dy.dim(0);
  const int64_t dim = dy.dim(1);
  const float scale = dropout.active() ? HiddenDropout(dropout.p).scale : 1.0f;
  visit_storage(dy.dtype(), [&]<class T>(Type<T>) {
    const bool vectors = rows_fit_vectors(dim, dy.as<T>(), dx.as<T>());
    launch(ctx, "relu_dropout_backward",
           vectors ? relu_dropout_backward_kernel<T, true> : relu_dropout_backward_kernel<T, false>,
           row_grid(rows, dim, kSpan), kRowThreads, 0, dy.as<T>(), bits.as<uint8_t>(), rows,
           static_cast<int>(dim), scale, dx.as<T>());
  });
}

}  // namespace scgraft::cuda
