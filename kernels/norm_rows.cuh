// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cmath>

#include "kernels/dropout_rows.cuh"
#include "kernels/norm_rows.h"
#include "kernels/require_tensor.h"

// What layer_norm.cu and rms_norm.cu share: their kernels and launches.
namespace scgraft::cuda {

template <class T>
struct NormForward {
  const T* x;
  const T* branch;  // or null
  const float* gamma;
  const float* beta;  // null with Norm::rms
  T* y;
  float* rstd;  // or null
  T* xhat;      // or null
  float eps;
  int64_t rows;
  int dim;
  DeviceDropout drop;
};

// Blocks of norm_kernel() on a multiprocessor. With four pieces ptxas, left alone, aims at five and
// spills on sm_86 and sm_89; with six of RMS norm at four, and spills on sm_75.
template <Norm kNorm>
constexpr int norm_blocks(int pieces) {
  if (pieces == 4) return 4;
  return pieces == 6 && kNorm == Norm::rms ? 3 : 0;
}

// A warp owns a row and holds z = x + drop(branch) in registers between the passes; rows too wide
// for that are read again in each pass, from the first-level cache. Each lane reads its pieces
// before it writes them, so y may be x or branch.
// Memory: reads x, branch, writes y (and xhat) once; that bounds it. gamma and beta stay in cache.
template <Norm kNorm, class T, int kPieces, bool kVectors>
__global__ void __launch_bounds__(kRowThreads, norm_blocks<kNorm>(kPieces))
    norm_kernel(NormForward<T> a) {
  const int64_t row = row_of_warp();
  if (row >= a.rows) return;
  const T* x = a.x + row * a.dim;
  const T* branch = a.branch == nullptr ? nullptr : a.branch + row * a.dim;
  const RowPlace place = row_place(a.drop, row);
  constexpr int kHeld = kPieces > 0 ? kPieces : 1;
  const int begin = gpu::lane() * kPiece;

  // All loads of a tensor are issued before the first is used.
  const auto residual = [&](int first, float(&z)[kHeld][kPiece]) {
    UNROLL
    for (int p = 0; p < kHeld; ++p) load_piece<kVectors>(x, first + p * kWarpPieces, a.dim, z[p]);
    if (branch == nullptr) return;
    float b[kHeld][kPiece];
    UNROLL
    for (int p = 0; p < kHeld; ++p)
      load_piece<kVectors>(branch, first + p * kWarpPieces, a.dim, b[p]);
    if (a.drop.active) {
      UNROLL
      for (int p = 0; p < kHeld; ++p) drop_piece(a.drop, place, first + p * kWarpPieces, b[p]);
    }
    UNROLL
    for (int p = 0; p < kHeld; ++p) {
      UNROLL
      for (int i = 0; i < kPiece; ++i) z[p][i] += b[p][i];
    }
  };
  float z[kHeld][kPiece];
  if constexpr (kPieces > 0) residual(begin, z);
  const auto each_piece = [&](auto&& use) {
    if constexpr (kPieces > 0) {
      UNROLL
      for (int p = 0; p < kPieces; ++p) use(begin + p * kWarpPieces, z[p]);
    } else {
      for (int first = begin; first < a.dim; first += kWarpPieces) {
        residual(first, z);
        use(first, z[0]);
      }
    }
  };

  const float dim = static_cast<float>(a.dim);
  float mean = 0;
  if constexpr (kNorm == Norm::layer) {
    each_piece([&](int, float(&v)[kPiece]) {
      UNROLL
      for (int i = 0; i < kPiece; ++i) mean += v[i];
    });
    mean = gpu::warp_sum(mean) / dim;
  }
  float squares = 0;
  each_piece([&](int first, float(&v)[kPiece]) {
    UNROLL
    for (int i = 0; i < kPiece; ++i)
      if (first + i < a.dim) squares += (v[i] - mean) * (v[i] - mean);
  });
  const float rstd = 1.0f / sqrtf(gpu::warp_sum(squares) / dim + a.eps);
  each_piece([&](int first, float(&v)[kPiece]) {
    float gamma[kPiece], beta[kPiece] = {};
    load_piece<kVectors>(a.gamma, first, a.dim, gamma);
    if constexpr (kNorm == Norm::layer) load_piece<kVectors>(a.beta, first, a.dim, beta);
    UNROLL
    for (int i = 0; i < kPiece; ++i) v[i] = (v[i] - mean) * rstd;
    if (a.xhat != nullptr) store_piece<kVectors>(a.xhat + row * a.dim, first, a.dim, v);
    UNROLL
    for (int i = 0; i < kPiece; ++i)
      v[i] = kNorm == Norm::layer ? gamma[i] * v[i] + beta[i] : gamma[i] * v[i];
    store_piece<kVectors>(a.y + row * a.dim, first, a.dim, v);
  });
  if (a.rstd != nullptr && gpu::lane() == 0) a.rstd[row] = rstd;
}

template <class T>
struct NormBackward {
  const T* dy;
  const T* y;     // or null, then xhat is not
  const T* xhat;  // or null
  const float* rstd;
  const float* gamma;
  const float* beta;  // null with Norm::rms
  T* dx;              // or null
  T* dbranch;         // or null
  int64_t rows;
  int dim;
  DeviceDropout drop;
};

// xhat from the output: v = (v - beta) / gamma, and 0 behind the end of the row.
template <int kCount>
__device__ __forceinline__ void normalised(const float (&gamma)[kCount],
                                           const float (&beta)[kCount], int first, int dim,
                                           float (&v)[kCount]) {
  UNROLL
  for (int i = 0; i < kCount; ++i) v[i] = first + i < dim ? (v[i] - beta[i]) / gamma[i] : 0.0f;
}

// Input gradients. A warp owns a row and holds g = gamma * dy and xhat in registers between the
// passes, or reads them again. Each lane reads its pieces before it writes them: dx may be dy.
// Memory: reads dy and y (or xhat), writes dx and dbranch once; that bounds it.
template <Norm kNorm, class T, int kPieces, bool kVectors>
__global__ void __launch_bounds__(kRowThreads) norm_backward_kernel(NormBackward<T> a) {
  const int64_t row = row_of_warp();
  if (row >= a.rows) return;
  const T* dy = a.dy + row * a.dim;
  const T* saved = (a.xhat != nullptr ? a.xhat : a.y) + row * a.dim;
  const RowPlace place = row_place(a.drop, row);
  const float rstd = a.rstd[row];
  constexpr int kHeld = kPieces > 0 ? kPieces : 1;
  const int begin = gpu::lane() * kPiece;

  const auto load = [&](int from, float(&g)[kHeld][kPiece], float(&xhat)[kHeld][kPiece]) {
    UNROLL
    for (int p = 0; p < kHeld; ++p) {
      load_piece<kVectors>(dy, from + p * kWarpPieces, a.dim, g[p]);
      load_piece<kVectors>(saved, from + p * kWarpPieces, a.dim, xhat[p]);
    }
    UNROLL
    for (int p = 0; p < kHeld; ++p) {
      const int first = from + p * kWarpPieces;
      float gamma[kPiece], beta[kPiece] = {};
      load_piece<kVectors>(a.gamma, first, a.dim, gamma);
      UNROLL
      for (int i = 0; i < kPiece; ++i) g[p][i] *= gamma[i];
      if (a.xhat != nullptr) continue;
      if constexpr (kNorm == Norm::layer) load_piece<kVectors>(a.beta, first, a.dim, beta);
      normalised(gamma, beta, first, a.dim, xhat[p]);
    }
  };
  float g[kHeld][kPiece], xhat[kHeld][kPiece];
  if constexpr (kPieces > 0) load(begin, g, xhat);
  const auto each_piece = [&](auto&& use) {
    if constexpr (kPieces > 0) {
      UNROLL
      for (int p = 0; p < kPieces; ++p) use(begin + p * kWarpPieces, g[p], xhat[p]);
    } else {
      for (int first = begin; first < a.dim; first += kWarpPieces) {
        load(first, g, xhat);
        use(first, g[0], xhat[0]);
      }
    }
  };

  [[maybe_unused]] float sum_g = 0;
  float sum_gx = 0;
  each_piece([&](int, float(&piece_g)[kPiece], float(&piece_xhat)[kPiece]) {
    UNROLL
    for (int i = 0; i < kPiece; ++i) {
      if constexpr (kNorm == Norm::layer) sum_g += piece_g[i];
      sum_gx += piece_g[i] * piece_xhat[i];
    }
  });
  float mean_g = 0;
  if constexpr (kNorm == Norm::layer) mean_g = gpu::warp_sum(sum_g) / static_cast<float>(a.dim);
  const float mean_gx = gpu::warp_sum(sum_gx) / static_cast<float>(a.dim);
  each_piece([&](int first, float(&dz)[kPiece], float(&piece_xhat)[kPiece]) {
    UNROLL
    for (int i = 0; i < kPiece; ++i) dz[i] = rstd * (dz[i] - mean_g - piece_xhat[i] * mean_gx);
    if (a.dx != nullptr) store_piece<kVectors>(a.dx + row * a.dim, first, a.dim, dz);
    if (a.dbranch == nullptr) return;
    if (a.drop.active) drop_piece(a.drop, place, first, dz);
    store_piece<kVectors>(a.dbranch + row * a.dim, first, a.dim, dz);
  });
}

// Parameters of a norm: gamma, and beta where there is one.
template <Norm kNorm>
inline constexpr int kNormParameters = kNorm == Norm::layer ? 2 : 1;

// Sums of dy * xhat (and of dy) over the rows of each cell, into sums [cells, kNormParameters,
// dim]. A block owns kPanelColumns columns of a cell, its warps the panels. cu_seqlens null: all
// rows are one cell. Memory: reads dy and y (or xhat) once more; that bounds it.
template <Norm kNorm, class T, bool kVectors>
__global__ void __launch_bounds__(kPanelThreads, 1)
    norm_cell_sums_kernel(NormBackward<T> a, const int32_t* cu_seqlens, float* sums) {
  const int64_t cell = blockIdx.x;
  const int64_t begin = cu_seqlens == nullptr ? 0 : cu_seqlens[cell];
  const int64_t end = cu_seqlens == nullptr ? a.rows : cu_seqlens[cell + 1];
  const int first = static_cast<int>(blockIdx.y) * kPanelColumns + gpu::lane() * kLaneColumns;
  float gamma[kLaneColumns] = {}, beta[kLaneColumns] = {};
  if (a.xhat == nullptr) {
    load_columns<kVectors>(a.gamma, first, a.dim, gamma);
    if constexpr (kNorm == Norm::layer) load_columns<kVectors>(a.beta, first, a.dim, beta);
  }
  const T* saved = a.xhat != nullptr ? a.xhat : a.y;
  constexpr int kSums = kNormParameters<kNorm>;
  sum_in_panels<kSums>(
      begin, end,
      [&](int64_t row, float(&sum)[kSums][kLaneColumns]) {
        float dy[kLaneColumns], xhat[kLaneColumns];
        load_columns<kVectors>(a.dy + row * a.dim, first, a.dim, dy);
        load_columns<kVectors>(saved + row * a.dim, first, a.dim, xhat);
        if (a.xhat == nullptr) normalised(gamma, beta, first, a.dim, xhat);
        UNROLL
        for (int c = 0; c < kLaneColumns; ++c) {
          sum[0][c] += dy[c] * xhat[c];
          if constexpr (kNorm == Norm::layer) sum[1][c] += dy[c];
        }
      },
      [&](const float(&total)[kSums][kLaneColumns]) {
        float* out = sums + cell * kSums * a.dim;
        UNROLL
        for (int s = 0; s < kSums; ++s)
          store_columns<kVectors>(out + s * a.dim, first, a.dim, total[s]);
      });
}

// Adds the cells in order to dgamma (blockIdx.y = 0) and dbeta (1). A thread owns a column.
template <Norm kNorm>
__global__ void __launch_bounds__(kRowThreads)
    norm_add_cells_kernel(const float* sums, int64_t cells, int dim, float* dgamma, float* dbeta) {
  const int f = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  float* out = blockIdx.y == 0 ? dgamma : dbeta;
  if (out == nullptr || f >= dim) return;
  const float* column = sums + (blockIdx.y == 0 ? 0 : dim) + f;
  float total = out[f];
  for (int64_t cell = 0; cell < cells; ++cell) total += column[cell * kNormParameters<kNorm> * dim];
  out[f] = total;
}

template <Norm kNorm, class T>
void norm_parameter_gradients(Context& ctx, const char* op, const NormBackward<T>& a,
                              const Packing* packing, bool vectors, float* dgamma, float* dbeta) {
  constexpr int kSums = kNormParameters<kNorm>;
  const int64_t cells = packing == nullptr ? 1 : packing->cells();
  const int32_t* cu_seqlens = packing == nullptr ? nullptr : packed_rows(op, ctx, *packing).offsets;
  Arena::Scope scratch(ctx.scratch());
  float* sums = scratch.take(Shape{cells, kSums, a.dim}, DType::f32).template as<float>();
  launch(ctx, op,
         vectors ? norm_cell_sums_kernel<kNorm, T, true> : norm_cell_sums_kernel<kNorm, T, false>,
         {.x = cells, .y = ceil_div(a.dim, kPanelColumns)}, kPanelThreads,
         panel_shared_bytes<kSums>(kPanelWarps), a, cu_seqlens, sums);
  launch(ctx, op, norm_add_cells_kernel<kNorm>, {.x = ceil_div(a.dim, kRowThreads), .y = kSums},
         kRowThreads, 0, sums, cells, a.dim, dgamma, dbeta);
}

// What layer_norm() and rms_norm() launch. beta: empty with Norm::rms.
template <Norm kNorm>
void norm_forward(Context& ctx, const char* op, ConstTensorView x, ConstTensorView branch,
                  Dropout dropout, const Packing* packing, ConstTensorView gamma,
                  ConstTensorView beta, double eps, TensorView y, TensorView rstd,
                  TensorView xhat) {
  const int64_t rows = x.dim(0);
  const RowDropout drop(op, ctx, branch.empty() ? Dropout{} : dropout, packing, rows);
  visit_storage(x.dtype(), [&]<class T>(Type<T>) {
    const NormForward<T> a{.x = x.as<T>(),
                           .branch = data_or_null<T>(branch),
                           .gamma = gamma.as<float>(),
                           .beta = data_or_null<float>(beta),
                           .y = y.as<T>(),
                           .rstd = data_or_null<float>(rstd),
                           .xhat = data_or_null<T>(xhat),
                           .eps = static_cast<float>(eps),
                           .rows = rows,
                           .dim = static_cast<int>(x.dim(1)),
                           .drop = drop.on_device(ctx)};
    const bool vectors = rows_fit_vectors(a.dim, a.x, a.branch, a.gamma, a.beta, a.y, a.xhat);
    visit_row_shape(a.dim, vectors, [&]<int kPieces, bool kVectors>(RowShape<kPieces, kVectors>) {
      launch(ctx, op, norm_kernel<kNorm, T, kPieces, kVectors>, row_grid(rows), kRowThreads, 0, a);
    });
  });
}

// Saved: LayerNormSaved and the like. beta and dbeta: empty with Norm::rms.
template <Norm kNorm, class Saved>
void norm_backward(Context& ctx, const char* op, ConstTensorView dy, const Saved& saved,
                   ConstTensorView gamma, ConstTensorView beta, Dropout dropout,
                   const Packing* packing, TensorView dx, TensorView dbranch, TensorView dgamma,
                   TensorView dbeta) {
  const int64_t rows = dy.dim(0);
  const RowDropout drop(op, ctx, dbranch.empty() ? Dropout{} : dropout, packing, rows);
  visit_storage(dy.dtype(), [&]<class T>(Type<T>) {
    const NormBackward<T> a{.dy = dy.as<T>(),
                            .y = data_or_null<T>(saved.y),
                            .xhat = data_or_null<T>(saved.xhat),
                            .rstd = saved.rstd.template as<float>(),
                            .gamma = gamma.as<float>(),
                            .beta = data_or_null<float>(beta),
                            .dx = data_or_null<T>(dx),
                            .dbranch = data_or_null<T>(dbranch),
                            .rows = rows,
                            .dim = static_cast<int>(dy.dim(1)),
                            .drop = drop.on_device(ctx)};
    const bool vectors =
        rows_fit_vectors(a.dim, a.dy, a.y, a.xhat, a.gamma, a.beta, a.dx, a.dbranch);
    // Before the input gradients: dx may be dy.
    if (!dgamma.empty() || !dbeta.empty())
      norm_parameter_gradients<kNorm>(ctx, op, a, packing, vectors, data_or_null<float>(dgamma),
                                      data_or_null<float>(dbeta));
    if (a.dx == nullptr && a.dbranch == nullptr) return;
    visit_row_shape(a.dim, vectors, [&]<int kPieces, bool kVectors>(RowShape<kPieces, kVectors>) {
      launch(ctx, op, norm_backward_kernel<kNorm, T, kPieces, kVectors>, row_grid(rows),
             kRowThreads, 0, a);
    });
  });
}

}  // namespace scgraft::cuda
