// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "kernels/pool.h"
#include "kernels/require_tensor.h"
#include "kernels/rows.cuh"

namespace scgraft::cuda {
namespace {

// A block owns kPanelColumns columns of a cell, its warps the panels of its tokens.
// Memory: reads x once, of cls only the first token of a cell; that bounds it.
// Two blocks: left alone ptxas aims at three, with 40 registers, and spills on some architectures.
template <class T, bool kVectors>
__global__ void __launch_bounds__(kPanelThreads, 2)
    pool_kernel(Pooling kind, const T* x, const T* weight, PackedRows packing, int dim, T* y) {
  const int64_t cell = blockIdx.x;
  const int64_t begin = packing.offsets[cell];
  const int64_t length = packing.offsets[cell + 1] - begin;
  const int64_t taken = kind == Pooling::cls && length > 0 ? 1 : length;
  const float count = kind == Pooling::mean && length > 0 ? static_cast<float>(length) : 1.0f;
  const int first = static_cast<int>(blockIdx.y) * kPanelColumns + gpu::lane() * kLaneColumns;
  sum_in_panels<1>(
      begin, begin + taken,
      [&](int64_t token, float(&sum)[1][kLaneColumns]) {
        const float w = kind == Pooling::weighted ? gpu::to_f32(weight[token]) : 1.0f;
        float v[kLaneColumns];
        load_columns<kVectors>(x + token * dim, first, dim, v);
        UNROLL
        for (int c = 0; c < kLaneColumns; ++c) sum[0][c] += w * v[c];
      },
      [&](float(&total)[1][kLaneColumns]) {
        UNROLL
        for (int c = 0; c < kLaneColumns; ++c) total[0][c] /= count;
        store_columns<kVectors>(y + cell * dim, first, dim, total[0]);
      });
}

// A warp owns a token. Memory: writes dx once; that bounds it. dy stays in cache.
template <class T, bool kVectors>
__global__ void __launch_bounds__(kRowThreads)
    pool_backward_kernel(Pooling kind, const T* dy, const T* weight, PackedRows packing, int dim,
                         T* dx) {
  const int64_t token = row_of_warp();
  if (token >= packing.tokens) return;
  const int64_t cell = packing.row_cells[token];
  const int64_t begin = packing.offsets[cell];
  const bool counts = kind != Pooling::cls || token == begin;
  const float w = kind == Pooling::weighted ? gpu::to_f32(weight[token]) : 1.0f;
  const float count =
      kind == Pooling::mean ? static_cast<float>(packing.offsets[cell + 1] - begin) : 1.0f;
  for (int first = gpu::lane() * kPiece; first < dim; first += kWarpPieces) {
    float v[kPiece];
    load_piece<kVectors>(dy + cell * dim, first, dim, v);
    UNROLL
    for (int i = 0; i < kPiece; ++i) v[i] = counts ? w * v[i] / count : 0.0f;
    store_piece<kVectors>(dx + token * dim, first, dim, v);
  }
}

// Of what warps found of a cell, a value and a row per column.
int64_t max_shared_bytes() {
  gpu::SharedCarver carver(nullptr);
  carver.take<float>(int64_t{kPanelWarps} * kPanelColumns);
  carver.take<int32_t>(int64_t{kPanelWarps} * kPanelColumns);
  return carver.used();
}

// A block owns kPanelColumns columns of a cell, its warps every kPanelWarps-th token. A maximum
// does not depend on the order, and of equal values the first row is taken.
// Memory: reads x once; that bounds it.
template <class T, bool kVectors>
__global__ void __launch_bounds__(kPanelThreads, 2)
    pool_max_kernel(const T* x, PackedRows packing, int dim, T* y, int32_t* at) {
  gpu::SharedCarver carver(gpu::shared_memory());
  float* values = carver.take<float>(int64_t{kPanelWarps} * kPanelColumns);
  auto* rows = carver.take<int32_t>(int64_t{kPanelWarps} * kPanelColumns);
  const int64_t cell = blockIdx.x;
  const int64_t begin = packing.offsets[cell];
  const int64_t end = packing.offsets[cell + 1];
  const int first = static_cast<int>(blockIdx.y) * kPanelColumns + gpu::lane() * kLaneColumns;
  float largest[kLaneColumns];
  int32_t where[kLaneColumns];
  UNROLL
  for (int c = 0; c < kLaneColumns; ++c) largest[c] = -INFINITY, where[c] = -1;
  for (int64_t token = begin + gpu::warp(); token < end; token += kPanelWarps) {
    float v[kLaneColumns];
    load_columns<kVectors>(x + token * dim, first, dim, v);
    UNROLL
    for (int c = 0; c < kLaneColumns; ++c)
      if (where[c] < 0 || v[c] > largest[c] || v[c] != v[c])
        largest[c] = v[c], where[c] = static_cast<int32_t>(token);
  }
  const int mine = gpu::warp() * kPanelColumns + gpu::lane() * kLaneColumns;
  UNROLL
  for (int c = 0; c < kLaneColumns; ++c) values[mine + c] = largest[c], rows[mine + c] = where[c];
  gpu::sync_block();
  if (gpu::warp() != 0) return;
  for (int warp = 1; warp < kPanelWarps; ++warp) {
    UNROLL
    for (int c = 0; c < kLaneColumns; ++c) {
      const int other = warp * kPanelColumns + gpu::lane() * kLaneColumns + c;
      const float v = values[other];
      const int32_t row = rows[other];
      if (row < 0) continue;  // this warp had no token
      if (v > largest[c] || v != v || (v == largest[c] && row < where[c]))
        largest[c] = v, where[c] = row;
    }
  }
  UNROLL
  for (int c = 0; c < kLaneColumns; ++c) {
    if (where[c] < 0) largest[c] = 0;
    if (first + c < dim) at[cell * dim + first + c] = where[c];
  }
  store_columns<kVectors>(y + cell * dim, first, dim, largest);
}

// A warp owns a token. Memory: writes dx once; that bounds it. dy and `at` stay in cache.
template <class T, bool kVectors>
__global__ void __launch_bounds__(kRowThreads)
    pool_max_backward_kernel(const T* dy, const int32_t* at, PackedRows packing, int dim, T* dx) {
  const int64_t token = row_of_warp();
  if (token >= packing.tokens) return;
  const int64_t cell = packing.row_cells[token];
  for (int first = gpu::lane() * kPiece; first < dim; first += kWarpPieces) {
    float v[kPiece];
    load_piece<kVectors>(dy + cell * dim, first, dim, v);
    UNROLL
    for (int i = 0; i < kPiece; ++i)
      if (first + i < dim && at[cell * dim + first + i] != token) v[i] = 0;
    store_piece<kVectors>(dx + token * dim, first, dim, v);
  }
}

}  // namespace

void pool(Context& ctx, Pooling kind, ConstTensorView x, ConstTensorView weight,
          const Packing& packing, TensorView y) {
  constexpr const char* kOp = "pool";
  const int64_t dim = x.dim(1);
  const PackedRows rows = packed_rows(kOp, ctx, packing);
  visit_storage(x.dtype(), [&]<class T>(Type<T>) {
    const bool vectors = rows_fit_vectors(dim, x.as<T>(), y.as<T>());
    launch(ctx, kOp, vectors ? pool_kernel<T, true> : pool_kernel<T, false>,
           {.x = rows.cells, .y = ceil_div(dim, kPanelColumns)}, kPanelThreads,
           panel_shared_bytes<1>(kPanelWarps), kind, x.as<T>(), data_or_null<T>(weight), rows,
           static_cast<int>(dim), y.as<T>());
  });
}

void pool_backward(Context& ctx, Pooling kind, ConstTensorView dy, ConstTensorView weight,
                   const Packing& packing, TensorView dx) {
  constexpr const char* kOp = "pool_backward";
  const int64_t dim = dx.dim(1);
  const PackedRows rows = packed_rows(kOp, ctx, packing);
  visit_storage(dx.dtype(), [&]<class T>(Type<T>) {
    const bool vectors = rows_fit_vectors(dim, dy.as<T>(), dx.as<T>());
    launch(ctx, kOp, vectors ? pool_backward_kernel<T, true> : pool_backward_kernel<T, false>,
           row_grid(rows.tokens), kRowThreads, 0, kind, dy.as<T>(), data_or_null<T>(weight), rows,
           static_cast<int>(dim), dx.as<T>());
  });
}

void pool_max(Context& ctx, ConstTensorView x, const Packing& packing, TensorView y,
              TensorView at) {
  constexpr const char* kOp = "pool_max";
  const int64_t dim = x.dim(1);
  const PackedRows rows = packed_rows(kOp, ctx, packing);
  visit_storage(x.dtype(), [&]<class T>(Type<T>) {
    const bool vectors = rows_fit_vectors(dim, x.as<T>(), y.as<T>());
    launch(ctx, kOp, vectors ? pool_max_kernel<T, true> : pool_max_kernel<T, false>,
           {.x = rows.cells, .y = ceil_div(dim, kPanelColumns)}, kPanelThreads, max_shared_bytes(),
           x.as<T>(), rows, static_cast<int>(dim), y.as<T>(), at.as<int32_t>());
  });
}

void pool_max_backward(Context& ctx, ConstTensorView dy, ConstTensorView at, const Packing& packing,
                       TensorView dx) {
  constexpr const char* kOp = "pool_max_backward";
  const int64_t dim = dx.dim(1);
  const PackedRows rows = packed_rows(kOp, ctx, packing);
  visit_storage(dx.dtype(), [&]<class T>(Type<T>) {
    const bool vectors = rows_fit_vectors(dim, dy.as<T>(), dx.as<T>());
    launch(ctx, kOp,
           vectors ? pool_max_backward_kernel<T, true> : pool_max_backward_kernel<T, false>,
           row_grid(rows.tokens), kRowThreads, 0, dy.as<T>(), at.as<int32_t>(), rows,
           static_cast<int>(dim), dx.as<T>());
  });
}

}  // namespace scgraft::cuda
