// SPDX-License-Identifier: Apache-2.0
#include "kernels/cell_dot.h"
#include "kernels/require_tensor.h"
#include "kernels/unit_rows.cuh"

namespace scgraft::cuda {
namespace {

// A warp owns a token. Memory: reads x once; that bounds it. c stays in cache.
template <class T, bool kVectors>
__global__ void __launch_bounds__(kRowThreads)
    cell_dot_kernel(const T* x, const T* c, PackedRows packing, int dim, T* y) {
  const int64_t token = row_of_warp();
  if (token >= packing.tokens) return;
  const int64_t cell = packing.row_cells[token];
  const float product = warp_dot<kVectors>(x + token * dim, c + cell * dim, dim);
  if (gpu::lane() == 0) y[token] = gpu::from_f32<T>(product);
}

// A warp owns a token. Memory: writes dx once; that bounds it. c stays in cache.
template <class T, bool kVectors>
__global__ void __launch_bounds__(kRowThreads)
    cell_dot_dx_kernel(const T* c, const T* dy, PackedRows packing, int dim, T* dx) {
  const int64_t token = row_of_warp();
  if (token >= packing.tokens) return;
  const int64_t cell = packing.row_cells[token];
  const float g = gpu::to_f32(dy[token]);
  for (int first = gpu::lane() * kPiece; first < dim; first += kWarpPieces) {
    float v[kPiece];
    load_piece<kVectors>(c + cell * dim, first, dim, v);
    UNROLL
    for (int i = 0; i < kPiece; ++i) v[i] *= g;
    store_piece<kVectors>(dx + token * dim, first, dim, v);
  }
}

// A block owns kPanelColumns columns of a cell, its warps the panels of its tokens.
// Memory: reads x once; that bounds it. Two blocks: see pool_kernel.
template <class T, bool kVectors>
__global__ void __launch_bounds__(kPanelThreads, 2)
    cell_dot_dc_kernel(const T* x, const T* dy, PackedRows packing, int dim, T* dc) {
  const int64_t cell = blockIdx.x;
  const int first = static_cast<int>(blockIdx.y) * kPanelColumns + gpu::lane() * kLaneColumns;
  sum_in_panels<1>(
      packing.offsets[cell], packing.offsets[cell + 1],
      [&](int64_t token, float(&sum)[1][kLaneColumns]) {
        const float g = gpu::to_f32(dy[token]);
        float v[kLaneColumns];
        load_columns<kVectors>(x + token * dim, first, dim, v);
        UNROLL
        for (int i = 0; i < kLaneColumns; ++i) sum[0][i] += g * v[i];
      },
      [&](const float(&total)[1][kLaneColumns]) {
        store_columns<kVectors>(dc + cell * dim, first, dim, total[0]);
      });
}

}  // namespace

void cell_dot(Context& ctx, ConstTensorView x, ConstTensorView c, const Packing& packing,
              TensorView y) {
  constexpr const char* kOp = "cell_dot";
  const int64_t dim = x.dim(1);
  const PackedRows rows = packed_rows(kOp, ctx, packing);
  visit_storage(x.dtype(), [&]<class T>(Type<T>) {
    const bool vectors = rows_fit_vectors(dim, x.as<T>(), c.as<T>());
    launch(ctx, kOp, vectors ? cell_dot_kernel<T, true> : cell_dot_kernel<T, false>,
           row_grid(rows.tokens), kRowThreads, 0, x.as<T>(), c.as<T>(), rows, static_cast<int>(dim),
           y.as<T>());
  });
}

void cell_dot_backward(Context& ctx, ConstTensorView x, ConstTensorView c, ConstTensorView dy,
                       const Packing& packing, TensorView dx, TensorView dc) {
  constexpr const char* kOp = "cell_dot_backward";
  const int64_t dim = x.dim(1);
  const PackedRows rows = packed_rows(kOp, ctx, packing);
  visit_storage(x.dtype(), [&]<class T>(Type<T>) {
    if (!dc.empty()) {
      const bool vectors = rows_fit_vectors(dim, x.as<T>(), dc.as<T>());
      launch(ctx, kOp, vectors ? cell_dot_dc_kernel<T, true> : cell_dot_dc_kernel<T, false>,
             {.x = rows.cells, .y = ceil_div(dim, kPanelColumns)}, kPanelThreads,
             panel_shared_bytes<1>(kPanelWarps), x.as<T>(), dy.as<T>(), rows, static_cast<int>(dim),
             dc.as<T>());
    }
    if (dx.empty()) return;
    const bool vectors = rows_fit_vectors(dim, c.as<T>(), dx.as<T>());
    launch(ctx, kOp, vectors ? cell_dot_dx_kernel<T, true> : cell_dot_dx_kernel<T, false>,
           row_grid(rows.tokens), kRowThreads, 0, c.as<T>(), dy.as<T>(), rows,
           static_cast<int>(dim), dx.as<T>());
  });
}

}  // namespace scgraft::cuda
