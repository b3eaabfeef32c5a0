// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "kernels/batch_norm.h"
#include "kernels/require_tensor.h"
#include "kernels/rows.cuh"

namespace scgraft::cuda {
namespace {

// Rows that a block of a sum owns: one panel per warp.
constexpr int64_t kChunkRows = kPanelWarps * kPanelRows;

// What is summed over the rows.
enum class Sum {
  rows,       // x
  squares,    // (x - mean)^2
  gradients,  // dy, and dy xhat
};
constexpr int sums_of(Sum sum) { return sum == Sum::gradients ? 2 : 1; }

// The map as kernels read it. gamma and beta null: 1 and 0.
struct Map {
  const float* mean;
  const float* var;
  const float* gamma;
  const float* beta;
  float eps;
};
Map device_map(const BatchNormMap& map) {
  return {.mean = map.mean.as<float>(),
          .var = map.var.as<float>(),
          .gamma = data_or_null<float>(map.gamma),
          .beta = data_or_null<float>(map.beta),
          .eps = static_cast<float>(map.eps)};
}

// A block owns kPanelColumns columns of kChunkRows rows, its warps the panels; parts [chunks, sums,
// dim]. Memory: reads x, of gradients dy too, once; that bounds it.
template <class T, Sum kSum, bool kVectors>
__global__ void __launch_bounds__(kPanelThreads, 1)
    batch_sums_kernel(const T* x, const T* dy, Map map, int64_t rows, int dim, float* parts) {
  constexpr int kSums = sums_of(kSum);
  const int64_t chunk = blockIdx.x;
  const int64_t begin = chunk * kChunkRows;
  const int64_t end = begin + kChunkRows < rows ? begin + kChunkRows : rows;
  const int first = static_cast<int>(blockIdx.y) * kPanelColumns + gpu::lane() * kLaneColumns;
  float mean[kLaneColumns] = {}, rstd[kLaneColumns] = {};
  if constexpr (kSum != Sum::rows) load_columns<kVectors>(map.mean, first, dim, mean);
  if constexpr (kSum == Sum::gradients) {
    load_columns<kVectors>(map.var, first, dim, rstd);
    UNROLL
    for (int c = 0; c < kLaneColumns; ++c) rstd[c] = 1.0f / sqrtf(rstd[c] + map.eps);
  }
  sum_in_panels<kSums>(
      begin, end,
      [&](int64_t row, float(&sum)[kSums][kLaneColumns]) {
        float v[kLaneColumns];
        load_columns<kVectors>(x + row * dim, first, dim, v);
        if constexpr (kSum == Sum::rows) {
          UNROLL
          for (int c = 0; c < kLaneColumns; ++c) sum[0][c] += v[c];
        } else if constexpr (kSum == Sum::squares) {
          UNROLL
          for (int c = 0; c < kLaneColumns; ++c) sum[0][c] += (v[c] - mean[c]) * (v[c] - mean[c]);
        } else {
          float g[kLaneColumns];
          load_columns<kVectors>(dy + row * dim, first, dim, g);
          UNROLL
          for (int c = 0; c < kLaneColumns; ++c) {
            sum[0][c] += g[c];
            sum[1][c] += g[c] * ((v[c] - mean[c]) * rstd[c]);
          }
        }
      },
      [&](float(&total)[kSums][kLaneColumns]) {
        UNROLL
        for (int s = 0; s < kSums; ++s)
          store_columns<kVectors>(parts + (chunk * kSums + s) * dim, first, dim, total[s]);
      });
}

// Adds the chunks in order: out[s] = total / count, and onto[s] += total; both may be null. A
// thread owns a column of sum blockIdx.y.
__global__ void __launch_bounds__(kRowThreads)
    batch_add_chunks_kernel(const float* parts, int64_t chunks, int dim, float count, float* out,
                            float* onto0, float* onto1) {
  const int f = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (f >= dim) return;
  const int sums = static_cast<int>(gridDim.y), s = static_cast<int>(blockIdx.y);
  float total = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) total += parts[(chunk * sums + s) * dim + f];
  if (out != nullptr) out[int64_t{s} * dim + f] = total / count;
  float* onto = s == 0 ? onto0 : onto1;
  if (onto != nullptr) onto[f] += total;
}

// A warp owns a row; a lane reads its pieces before it writes them: y may be x.
// Memory: reads x, writes y once; that bounds it. The map stays in cache.
template <class T, bool kVectors>
__global__ void __launch_bounds__(kRowThreads)
    batch_norm_kernel(const T* x, Map map, int64_t rows, int dim, T* y) {
  const int64_t row = row_of_warp();
  if (row >= rows) return;
  for (int first = gpu::lane() * kPiece; first < dim; first += kWarpPieces) {
    float v[kPiece], mean[kPiece], var[kPiece];
    load_piece<kVectors>(x + row * dim, first, dim, v);
    load_piece<kVectors>(map.mean, first, dim, mean);
    load_piece<kVectors>(map.var, first, dim, var);
    UNROLL
    for (int i = 0; i < kPiece; ++i) v[i] = (v[i] - mean[i]) * (1.0f / sqrtf(var[i] + map.eps));
    if (map.gamma != nullptr) {
      float gamma[kPiece], beta[kPiece];
      load_piece<kVectors>(map.gamma, first, dim, gamma);
      load_piece<kVectors>(map.beta, first, dim, beta);
      UNROLL
      for (int i = 0; i < kPiece; ++i) v[i] = gamma[i] * v[i] + beta[i];
    }
    store_piece<kVectors>(y + row * dim, first, dim, v);
  }
}

// The same for the gradient by x; means [2, dim] of dy and of dy xhat, or null. dx may be dy.
// Memory: reads dy, with means x too, writes dx once; that bounds it. Six blocks: left alone ptxas
// aims at more, and spills on sm_120.
template <class T, bool kVectors>
__global__ void __launch_bounds__(kRowThreads, 6)
    batch_norm_backward_kernel(const T* x, const T* dy, Map map, const float* means, int64_t rows,
                               int dim, T* dx) {
  const int64_t row = row_of_warp();
  if (row >= rows) return;
  for (int first = gpu::lane() * kPiece; first < dim; first += kWarpPieces) {
    float g[kPiece], rstd[kPiece];
    load_piece<kVectors>(dy + row * dim, first, dim, g);
    load_piece<kVectors>(map.var, first, dim, rstd);
    UNROLL
    for (int i = 0; i < kPiece; ++i) rstd[i] = 1.0f / sqrtf(rstd[i] + map.eps);
    if (means != nullptr) {
      float v[kPiece], mean[kPiece], shift[kPiece], slope[kPiece];
      load_piece<kVectors>(x + row * dim, first, dim, v);
      load_piece<kVectors>(map.mean, first, dim, mean);
      load_piece<kVectors>(means, first, dim, shift);
      load_piece<kVectors>(means + dim, first, dim, slope);
      UNROLL
      for (int i = 0; i < kPiece; ++i) g[i] -= shift[i] + (v[i] - mean[i]) * rstd[i] * slope[i];
    }
    if (map.gamma != nullptr) {
      float gamma[kPiece];
      load_piece<kVectors>(map.gamma, first, dim, gamma);
      UNROLL
      for (int i = 0; i < kPiece; ++i) g[i] *= gamma[i];
    }
    UNROLL
    for (int i = 0; i < kPiece; ++i) g[i] *= rstd[i];
    store_piece<kVectors>(dx + row * dim, first, dim, g);
  }
}

// Means over the rows into out [sums, dim], totals onto onto0 and onto1; each may be null.
template <Sum kSum, class T>
void batch_sums(Context& ctx, const char* op, const T* x, const T* dy, const Map& map, int64_t rows,
                int dim, bool vectors, float* out, float* onto0, float* onto1) {
  constexpr int kSums = sums_of(kSum);
  const int64_t chunks = ceil_div(rows, kChunkRows);
  Arena::Scope scratch(ctx.scratch());
  float* parts = ctx.scratch().take(Shape{chunks, kSums, dim}, DType::f32).template as<float>();
  launch(ctx, op, vectors ? batch_sums_kernel<T, kSum, true> : batch_sums_kernel<T, kSum, false>,
         {.x = chunks, .y = ceil_div(dim, kPanelColumns)}, kPanelThreads,
         panel_shared_bytes<kSums>(kPanelWarps), x, dy, map, rows, dim, parts);
  launch(ctx, op, batch_add_chunks_kernel, {.x = ceil_div(dim, kRowThreads), .y = kSums},
         kRowThreads, 0, parts, chunks, dim, static_cast<float>(rows > 0 ? rows : 1), out, onto0,
         onto1);
}

}  // namespace

void batch_moments(Context& ctx, ConstTensorView x, TensorView mean, TensorView var) {
  constexpr const char* kOp = "batch_moments";
  const int64_t rows = x.dim(0);
  const int dim = static_cast<int>(x.dim(1));
  visit_storage(x.dtype(), [&]<class T>(Type<T>) {
    float* m = mean.as<float>();
    float* v = var.as<float>();
    const bool vectors = rows_fit_vectors(dim, x.as<T>(), m, v);
    const Map map{.mean = m, .var = nullptr, .gamma = nullptr, .beta = nullptr, .eps = 0};
    const T* none = nullptr;
    batch_sums<Sum::rows>(ctx, kOp, x.as<T>(), none, map, rows, dim, vectors, m, nullptr, nullptr);
    batch_sums<Sum::squares>(ctx, kOp, x.as<T>(), none, map, rows, dim, vectors, v, nullptr,
                             nullptr);
  });
}

void batch_norm(Context& ctx, ConstTensorView x, const BatchNormMap& map, TensorView y) {
  const int64_t rows = x.dim(0);
  const int dim = static_cast<int>(x.dim(1));
  const Map m = device_map(map);
  visit_storage(x.dtype(), [&]<class T>(Type<T>) {
    const bool vectors =
        rows_fit_vectors(dim, x.as<T>(), m.mean, m.var, m.gamma, m.beta, y.as<T>());
    launch(ctx, "batch_norm", vectors ? batch_norm_kernel<T, true> : batch_norm_kernel<T, false>,
           row_grid(rows), kRowThreads, 0, x.as<T>(), m, rows, dim, y.as<T>());
  });
}

void batch_norm_backward(Context& ctx, ConstTensorView x, ConstTensorView dy,
                         const BatchNormMap& map, bool of_batch, TensorView dx, TensorView dgamma,
                         TensorView dbeta) {
  constexpr const char* kOp = "batch_norm_backward";
  const int64_t rows = x.dim(0);
  const int dim = static_cast<int>(x.dim(1));
  const Map m = device_map(map);
  Arena::Scope scratch(ctx.scratch());
  float* means = nullptr;
  if (of_batch) means = ctx.scratch().take(Shape{2, dim}, DType::f32).as<float>();
  visit_storage(x.dtype(), [&]<class T>(Type<T>) {
    const bool vectors = rows_fit_vectors(dim, x.as<T>(), dy.as<T>(), m.mean, m.var, m.gamma,
                                          data_or_null<T>(dx), means);
    if (of_batch || !dgamma.empty() || !dbeta.empty())
      batch_sums<Sum::gradients>(ctx, kOp, x.as<T>(), dy.as<T>(), m, rows, dim, vectors, means,
                                 data_or_null<float>(dbeta), data_or_null<float>(dgamma));
    if (dx.empty()) return;
    launch(ctx, kOp,
           vectors ? batch_norm_backward_kernel<T, true> : batch_norm_backward_kernel<T, false>,
           row_grid(rows), kRowThreads, 0, x.as<T>(), dy.as<T>(), m, means, rows, dim, dx.as<T>());
  });
}

}  // namespace scgraft::cuda
