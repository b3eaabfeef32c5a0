// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "kernels/dropout_rows.cuh"
#include "kernels/layer_norm.h"
#include "kernels/require_tensor.h"

namespace scgraft::cuda {
namespace {

template <class T>
struct Forward {
  const T* x;
  const T* branch;  // or null
  const float* gamma;
  const float* beta;
  T* y;
  float* rstd;  // or null
  T* xhat;      // or null
  float eps;
  int64_t rows;
  int dim;
  DeviceDropout drop;
};

// A warp owns a row and holds z = x + drop(branch) in registers between the passes; rows too wide
// for that are read again in each pass, from the first-level cache. Each lane reads its pieces
// before it writes them, so y may be x or branch.
// Memory: reads x, branch, writes y (and xhat) once; that bounds it. gamma and beta stay in cache.
// Four blocks with four pieces: left alone ptxas aims at five there and spills on sm_86 and sm_89.
template <class T, int kPieces, bool kVectors>
__global__ void __launch_bounds__(kRowThreads, kPieces == 4 ? 4 : 0)
    layer_norm_kernel(Forward<T> a) {
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
  float sum = 0;
  each_piece([&](int, float(&v)[kPiece]) {
    UNROLL
    for (int i = 0; i < kPiece; ++i) sum += v[i];
  });
  const float mean = gpu::warp_sum(sum) / dim;
  float squares = 0;
  each_piece([&](int first, float(&v)[kPiece]) {
    UNROLL
    for (int i = 0; i < kPiece; ++i)
      if (first + i < a.dim) squares += (v[i] - mean) * (v[i] - mean);
  });
  const float rstd = 1.0f / sqrtf(gpu::warp_sum(squares) / dim + a.eps);
  each_piece([&](int first, float(&v)[kPiece]) {
    float gamma[kPiece], beta[kPiece];
    load_piece<kVectors>(a.gamma, first, a.dim, gamma);
    load_piece<kVectors>(a.beta, first, a.dim, beta);
    UNROLL
    for (int i = 0; i < kPiece; ++i) v[i] = (v[i] - mean) * rstd;
    if (a.xhat != nullptr) store_piece<kVectors>(a.xhat + row * a.dim, first, a.dim, v);
    UNROLL
    for (int i = 0; i < kPiece; ++i) v[i] = gamma[i] * v[i] + beta[i];
    store_piece<kVectors>(a.y + row * a.dim, first, a.dim, v);
  });
  if (a.rstd != nullptr && gpu::lane() == 0) a.rstd[row] = rstd;
}

template <class T>
struct Backward {
  const T* dy;
  const T* y;     // or null, then xhat is not
  const T* xhat;  // or null
  const float* rstd;
  const float* gamma;
  const float* beta;
  T* dx;       // or null
  T* dbranch;  // or null
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
template <class T, int kPieces, bool kVectors>
__global__ void __launch_bounds__(kRowThreads) layer_norm_backward_kernel(Backward<T> a) {
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
      float gamma[kPiece], beta[kPiece];
      load_piece<kVectors>(a.gamma, first, a.dim, gamma);
      UNROLL
      for (int i = 0; i < kPiece; ++i) g[p][i] *= gamma[i];
      if (a.xhat != nullptr) continue;
      load_piece<kVectors>(a.beta, first, a.dim, beta);
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

  float sum_g = 0;
  float sum_gx = 0;
  each_piece([&](int, float(&piece_g)[kPiece], float(&piece_xhat)[kPiece]) {
    UNROLL
    for (int i = 0; i < kPiece; ++i) {
      sum_g += piece_g[i];
      sum_gx += piece_g[i] * piece_xhat[i];
    }
  });
  const float mean_g = gpu::warp_sum(sum_g) / static_cast<float>(a.dim);
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

// Sums of dy * xhat and of dy over the rows of each cell, into sums [cells, 2, dim]. A block owns
// kPanelColumns columns of a cell, its warps the panels. cu_seqlens null: all rows are one cell.
// Memory: reads dy and y (or xhat) once more; that bounds it.
template <class T, bool kVectors>
__global__ void __launch_bounds__(kPanelThreads, 1)
    layer_norm_cell_sums_kernel(Backward<T> a, const int32_t* cu_seqlens, float* sums) {
  const int64_t cell = blockIdx.x;
  const int64_t begin = cu_seqlens == nullptr ? 0 : cu_seqlens[cell];
  const int64_t end = cu_seqlens == nullptr ? a.rows : cu_seqlens[cell + 1];
  const int first = static_cast<int>(blockIdx.y) * kPanelColumns + gpu::lane() * kLaneColumns;
  float gamma[kLaneColumns] = {}, beta[kLaneColumns] = {};
  if (a.xhat == nullptr) {
    load_columns<kVectors>(a.gamma, first, a.dim, gamma);
    load_columns<kVectors>(a.beta, first, a.dim, beta);
  }
  const T* saved = a.xhat != nullptr ? a.xhat : a.y;
  sum_in_panels<2>(
      begin, end,
      [&](int64_t row, float(&sum)[2][kLaneColumns]) {
        float dy[kLaneColumns], xhat[kLaneColumns];
        load_columns<kVectors>(a.dy + row * a.dim, first, a.dim, dy);
        load_columns<kVectors>(saved + row * a.dim, first, a.dim, xhat);
        if (a.xhat == nullptr) normalised(gamma, beta, first, a.dim, xhat);
        UNROLL
        for (int c = 0; c < kLaneColumns; ++c) {
          sum[0][c] += dy[c] * xhat[c];
          sum[1][c] += dy[c];
        }
      },
      [&](const float(&total)[2][kLaneColumns]) {
        float* out = sums + cell * 2 * a.dim;
        store_columns<kVectors>(out, first, a.dim, total[0]);
        store_columns<kVectors>(out + a.dim, first, a.dim, total[1]);
      });
}

// Adds the cells in order to dgamma (blockIdx.y = 0) and dbeta (1). A thread owns a column.
__global__ void __launch_bounds__(kRowThreads)
    layer_norm_add_cells_kernel(const float* sums, int64_t cells, int dim, float* dgamma,
                                float* dbeta) {
  const int f = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  float* out = blockIdx.y == 0 ? dgamma : dbeta;
  if (out == nullptr || f >= dim) return;
  const float* column = sums + (blockIdx.y == 0 ? 0 : dim) + f;
  float total = out[f];
  for (int64_t cell = 0; cell < cells; ++cell) total += column[cell * 2 * dim];
  out[f] = total;
}

template <class T>
void parameter_gradients(Context& ctx, const char* op, const Backward<T>& a, const Packing* packing,
                         bool vectors, float* dgamma, float* dbeta) {
  const int64_t cells = packing == nullptr ? 1 : packing->cells();
  const int32_t* cu_seqlens = packing == nullptr ? nullptr : packed_rows(op, ctx, *packing).offsets;
  Arena::Scope scratch(ctx.scratch());
  float* sums = scratch.take(Shape{cells, 2, a.dim}, DType::f32).as<float>();
  launch(ctx, op,
         vectors ? layer_norm_cell_sums_kernel<T, true> : layer_norm_cell_sums_kernel<T, false>,
         {.x = cells, .y = ceil_div(a.dim, kPanelColumns)}, kPanelThreads,
         panel_shared_bytes<2>(kPanelWarps), a, cu_seqlens, sums);
  launch(ctx, op, layer_norm_add_cells_kernel, {.x = ceil_div(a.dim, kRowThreads), .y = 2},
         kRowThreads, 0, sums, cells, a.dim, dgamma, dbeta);
}

}  // namespace

void layer_norm(Context& ctx, ConstTensorView x, ConstTensorView branch, Dropout dropout,
                const Packing* packing, ConstTensorView gamma, ConstTensorView beta, double eps,
                TensorView y, TensorView rstd, TensorView xhat) {
  constexpr const char* kOp = "layer_norm";
  const int64_t rows = x.dim(0);
  const RowDropout drop(kOp, ctx, branch.empty() ? Dropout{} : dropout, packing, rows);
  visit_storage(x.dtype(), [&]<class T>(Type<T>) {
    const Forward<T> a{.x = x.as<T>(),
                       .branch = data_or_null<T>(branch),
                       .gamma = gamma.as<float>(),
                       .beta = beta.as<float>(),
                       .y = y.as<T>(),
                       .rstd = data_or_null<float>(rstd),
                       .xhat = data_or_null<T>(xhat),
                       .eps = static_cast<float>(eps),
                       .rows = rows,
                       .dim = static_cast<int>(x.dim(1)),
                       .drop = drop.on_device(ctx)};
    const bool vectors = rows_fit_vectors(a.dim, a.x, a.branch, a.gamma, a.beta, a.y, a.xhat);
    visit_row_shape(a.dim, vectors, [&]<int kPieces, bool kVectors>(RowShape<kPieces, kVectors>) {
      launch(ctx, kOp, layer_norm_kernel<T, kPieces, kVectors>, row_grid(rows), kRowThreads, 0, a);
    });
  });
}

void layer_norm_backward(Context& ctx, ConstTensorView dy, const LayerNormSaved& saved,
                         ConstTensorView gamma, ConstTensorView beta, Dropout dropout,
                         const Packing* packing, TensorView dx, TensorView dbranch,
                         TensorView dgamma, TensorView dbeta) {
  constexpr const char* kOp = "layer_norm_backward";
  const int64_t rows = dy.dim(0);
  const RowDropout drop(kOp, ctx, dbranch.empty() ? Dropout{} : dropout, packing, rows);
  visit_storage(dy.dtype(), [&]<class T>(Type<T>) {
    const Backward<T> a{.dy = dy.as<T>(),
                        .y = data_or_null<T>(saved.y),
                        .xhat = data_or_null<T>(saved.xhat),
                        .rstd = saved.rstd.as<float>(),
                        .gamma = gamma.as<float>(),
                        .beta = beta.as<float>(),
                        .dx = data_or_null<T>(dx),
                        .dbranch = data_or_null<T>(dbranch),
                        .rows = rows,
                        .dim = static_cast<int>(dy.dim(1)),
                        .drop = drop.on_device(ctx)};
    const bool vectors =
        rows_fit_vectors(a.dim, a.dy, a.y, a.xhat, a.gamma, a.beta, a.dx, a.dbranch);
    // Before the input gradients: dx may be dy.
    if (!dgamma.empty() || !dbeta.empty())
      parameter_gradients(ctx, kOp, a, packing, vectors, data_or_null<float>(dgamma),
                          data_or_null<float>(dbeta));
    if (a.dx == nullptr && a.dbranch == nullptr) return;
    visit_row_shape(a.dim, vectors, [&]<int kPieces, bool kVectors>(RowShape<kPieces, kVectors>) {
      launch(ctx, kOp, layer_norm_backward_kernel<T, kPieces, kVectors>, row_grid(rows),
             kRowThreads, 0, a);
    });
  });
}

}  // namespace scgraft::cuda
