// SPDX-License-Identifier: Apache-2.0
#include "kernels/require_tensor.h"
#include "kernels/rotation.h"
#include "kernels/rows.cuh"

namespace scgraft::cuda {
namespace {

constexpr int kWarps = 16;
constexpr int kThreads = kWarps * gpu::kWarp;

int64_t lines_bytes(int n) {
  gpu::SharedCarver carver(nullptr);
  carver.take<float>(n);
  carver.take<float>(n);
  return carver.used();
}

// A thread block owns a block, which lies in q from the start and stays in cache; a warp owns rows
// of it, a lane columns. n steps follow one another, each reading and writing all of the block:
// bound by the latency of these.
__global__ void __launch_bounds__(kThreads) cayley_kernel(const float* skew, int n, float* q) {
  gpu::SharedCarver carver(gpu::shared_memory());
  float *row = carver.take<float>(n), *column = carver.take<float>(n);
  const int warp = gpu::warp(), lane = gpu::lane();
  const float* s = skew + int64_t{blockIdx.x} * (n * (n - 1) / 2);
  float* a = q + int64_t{blockIdx.x} * n * n;
  for (int i = warp; i < n; i += kWarps)
    for (int j = lane; j < n; j += gpu::kWarp)
      a[i * n + j] = i == j  ? 1.0f
                     : i < j ? s[triangle_index(i, j, n)]
                             : -s[triangle_index(j, i, n)];
  gpu::sync_block();
  for (int k = 0; k < n; ++k) {
    const float scale = 1.0f / a[k * n + k];
    for (int j = static_cast<int>(threadIdx.x); j < n; j += kThreads) {
      row[j] = (j == k ? 1.0f : a[k * n + j]) * scale;
      column[j] = a[j * n + k];
    }
    gpu::sync_block();
    for (int i = warp; i < n; i += kWarps) {
      const float factor = column[i];
      for (int j = lane; j < n; j += gpu::kWarp) {
        const float before = j == k ? 0.0f : a[i * n + j];
        a[i * n + j] = i == k ? row[j] : before - factor * row[j];
      }
    }
    gpu::sync_block();
  }
  // Here a thread has written what it reads.
  for (int i = warp; i < n; i += kWarps)
    for (int j = lane; j < n; j += gpu::kWarp)
      a[i * n + j] = 2.0f * a[i * n + j] - (i == j ? 1.0f : 0.0f);
}

// A matrix per block: element (r, c) of block b is data[b * block + r * row + c].
struct Blocks {
  const float* data;
  int64_t row, block;
};

constexpr int kTile = 32;  // rows and columns of a tile of the result, and depth of a slice
constexpr int kTileStride = kTile + 1;
constexpr int kSide = 16;  // threads along each side of a tile
constexpr int kTileThreads = kSide * kSide;

int64_t tiles_bytes() {
  gpu::SharedCarver carver(nullptr);
  carver.take<float>(kTile * kTileStride);
  carver.take<float>(kTile * kTileStride);
  return carver.used();
}

// tile[k][line] of an operand that is [k, line] where kAcross, else [line, k]; zeros behind its
// end.
template <bool kAcross>
__device__ __forceinline__ void load_tile(const float* from, int64_t row, int line0, int lines,
                                          int k0, int depth, float* tile) {
  for (int e = static_cast<int>(threadIdx.x); e < kTile * kTile; e += kTileThreads) {
    const int fast = e % kTile, slow = e / kTile;
    const int line = kAcross ? fast : slow, k = kAcross ? slow : fast;
    const int64_t at = kAcross ? (k0 + k) * row + line0 + line : (line0 + line) * row + k0 + k;
    tile[k * kTileStride + line] = line0 + line < lines && k0 + k < depth ? from[at] : 0.0f;
  }
}

// c = a b + plus, each per block; kTurnA: with a^T, kTurnB: with b^T; plus.data may be null.
//   a [rows, depth], b [depth, columns], c and plus [rows, columns]
// A thread owns 2 x 2 elements of a tile and sums each in the order of k. These products are small
// beside those with the tokens of a batch, and reuse of a tile is all they need.
template <bool kTurnA, bool kTurnB>
__global__ void __launch_bounds__(kTileThreads)
    block_product_kernel(Blocks a, Blocks b, Blocks plus, int rows, int columns, int depth,
                         float* c, int64_t c_row, int64_t c_block) {
  gpu::SharedCarver carver(gpu::shared_memory());
  float* left = carver.take<float>(kTile * kTileStride);
  float* right = carver.take<float>(kTile * kTileStride);
  const int64_t block = blockIdx.z;
  const int row0 = static_cast<int>(blockIdx.x) * kTile;
  const int column0 = static_cast<int>(blockIdx.y) * kTile;
  const int ty = static_cast<int>(threadIdx.x) / kSide, tx = static_cast<int>(threadIdx.x) % kSide;
  float sum[2][2] = {};
  for (int k0 = 0; k0 < depth; k0 += kTile) {
    load_tile<kTurnA>(a.data + block * a.block, a.row, row0, rows, k0, depth, left);
    load_tile<!kTurnB>(b.data + block * b.block, b.row, column0, columns, k0, depth, right);
    gpu::sync_block();
    UNROLL
    for (int k = 0; k < kTile; ++k) {
      const float *x = left + k * kTileStride + ty, *y = right + k * kTileStride + tx;
      UNROLL
      for (int i = 0; i < 2; ++i) {
        UNROLL
        for (int j = 0; j < 2; ++j) sum[i][j] += x[i * kSide] * y[j * kSide];
      }
    }
    gpu::sync_block();
  }
  UNROLL
  for (int i = 0; i < 2; ++i) {
    const int row = row0 + ty + i * kSide;
    UNROLL
    for (int j = 0; j < 2; ++j) {
      const int column = column0 + tx + j * kSide;
      if (row >= rows || column >= columns) continue;
      if (plus.data != nullptr)
        sum[i][j] += plus.data[block * plus.block + row * plus.row + column];
      c[block * c_block + row * c_row + column] = sum[i][j];
    }
  }
}

// A thread block owns a block. Memory: reads m, half of it across rows.
__global__ void __launch_bounds__(kThreads) add_skew_kernel(const float* m, int n, float* dskew) {
  const float* from = m + int64_t{blockIdx.x} * n * n;
  float* to = dskew + int64_t{blockIdx.x} * (n * (n - 1) / 2);
  for (int i = gpu::warp(); i < n; i += kWarps)
    for (int j = i + 1 + gpu::lane(); j < n; j += gpu::kWarp)
      to[triangle_index(i, j, n)] -= 0.5f * (from[i * n + j] - from[j * n + i]);
}

// A thread block owns a block. Memory: reads it twice, and writes it where it must be scaled.
__global__ void __launch_bounds__(kThreads)
    bound_rotation_kernel(float radius, float inside, int each, float* skew) {
  gpu::SharedCarver carver(gpu::shared_memory());
  float* parts = carver.take<float>(kWarps);
  float* block = skew + int64_t{blockIdx.x} * each;
  float square = 0;
  for (int i = static_cast<int>(threadIdx.x); i < each; i += kThreads)
    square += block[i] * block[i];
  const float norm = sqrtf(2.0f * block_sum(square, parts));
  if (!(norm > radius)) return;
  const float factor = radius / norm * inside;
  for (int i = static_cast<int>(threadIdx.x); i < each; i += kThreads) block[i] *= factor;
}

template <bool kTurnA, bool kTurnB>
void block_product(Context& ctx, const char* op, int64_t blocks, int64_t rows, int64_t columns,
                   int64_t depth, Blocks a, Blocks b, Blocks plus, float* c, int64_t c_row,
                   int64_t c_block) {
  if (rows == 0 || columns == 0) return;
  launch(ctx, op, block_product_kernel<kTurnA, kTurnB>,
         {.x = ceil_div(rows, kTile), .y = ceil_div(columns, kTile), .z = blocks}, kTileThreads,
         tiles_bytes(), a, b, plus, static_cast<int>(rows), static_cast<int>(columns),
         static_cast<int>(depth), c, c_row, c_block);
}

void require_f32(const ConstTensorView& t) {
  require<TypeError>(t.dtype() == DType::f32, "on a GPU rotations are f32, got ", t.dtype());
}

Blocks squares(const ConstTensorView& q) { return {q.as<float>(), q.dim(1), q.dim(1) * q.dim(1)}; }

}  // namespace

void cayley(Context& ctx, ConstTensorView skew, TensorView q) {
  require_f32(q);
  const auto n = static_cast<int>(q.dim(1));
  launch(ctx, "cayley", cayley_kernel, {.x = q.dim(0)}, kThreads, lines_bytes(n),
         data_or_null<float>(skew), n, q.as<float>());
}

void cayley_backward(Context& ctx, ConstTensorView q, ConstTensorView dq, TensorView dskew) {
  constexpr const char* kOp = "cayley_backward";
  require_f32(q);
  if (dskew.numel() == 0) return;
  Arena::Scope scratch(ctx.scratch());
  const int64_t n = q.dim(1);
  const TensorView right = scratch.take(q.shape(), DType::f32);
  const TensorView m = scratch.take(q.shape(), DType::f32);
  // dq (I + Q^T), then (I + Q^T) times that.
  block_product<false, true>(ctx, kOp, q.dim(0), n, n, n, squares(dq), squares(q), squares(dq),
                             right.as<float>(), n, n * n);
  block_product<true, false>(ctx, kOp, q.dim(0), n, n, n, squares(q), squares(right),
                             squares(right), m.as<float>(), n, n * n);
  launch(ctx, kOp, add_skew_kernel, {.x = q.dim(0)}, kThreads, 0, m.as<float>(),
         static_cast<int>(n), dskew.as<float>());
}

void bound_rotation(Context& ctx, double radius, TensorView skew) {
  require_f32(skew);
  if (skew.numel() == 0) return;
  gpu::SharedCarver carver(nullptr);
  carver.take<float>(kWarps);
  launch(ctx, "bound_rotation", bound_rotation_kernel, {.x = skew.dim(0)}, kThreads, carver.used(),
         static_cast<float>(radius), static_cast<float>(kInsideRadius),
         static_cast<int>(skew.dim(1)), skew.as<float>());
}

void rotate_columns(Context& ctx, ConstTensorView w, ConstTensorView q, TensorView y) {
  require_f32(w);
  const int64_t n = q.dim(1), in = w.dim(1);
  block_product<false, true>(ctx, "rotate_columns", q.dim(0), w.dim(0), n, n,
                             {w.as<float>(), in, n}, squares(q), {}, y.as<float>(), in, n);
}

void rotate_columns_backward(Context& ctx, ConstTensorView w, ConstTensorView dy, TensorView dq) {
  require_f32(w);
  const int64_t n = dq.dim(1), in = w.dim(1);
  block_product<true, false>(ctx, "rotate_columns_backward", dq.dim(0), n, n, w.dim(0),
                             {dy.as<float>(), in, n}, {w.as<float>(), in, n}, {}, dq.as<float>(), n,
                             n * n);
}

}  // namespace scgraft::cuda
