// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "kernels/linear_operands.cuh"

// Products in f32, without tensor cores: every product and sum is rounded to f32.
//
// A block of 16 x 16 threads owns a tile of the result, a thread owns every 16th group of its rows
// and columns in registers. Slices of both operands lie in shared memory twice, one copy being read
// while the next slice arrives in registers. Every element is summed in the order of k, so its bits
// depend neither on the tile nor on its neighbours.
namespace scgraft::cuda {

inline constexpr int kF32Side = 16;  // threads along each side of a tile
inline constexpr int kF32Threads = kF32Side * kF32Side;

// One slice of a tile: kDepth values of k for kWidth rows or columns, as [k][width]. Rows of the
// shared array are a chunk longer than they need to be: the threads that store transposed chunks
// hit different banks.
template <int kWidth, int kDepth>
struct F32Slice {
  static constexpr int kStride = kWidth + 4;
  static constexpr int kFloats = kDepth * kStride;
  static constexpr int kChunks = kWidth * kDepth / 4;
  static constexpr int kLoads = (kChunks + kF32Threads - 1) / kF32Threads;
};

// Loads of one slice on their way to shared memory. kAlongK: the operand is [width, k] and chunks
// are turned when they are stored, else it is [k, width].
template <int kWidth, int kDepth, bool kAlongK>
struct F32Loads {
  using Slice = F32Slice<kWidth, kDepth>;
  gpu::F4 chunk[Slice::kLoads];

  // width0 and k0: where the slice begins. Rows from `stop` on are not read.
  // drop: of the operand's features, which lie along its rows; may be inactive.
  __device__ __forceinline__ void load(const Operand<float>& from, int64_t width0, int64_t k0,
                                       int64_t stop, const DeviceDropout& drop) {
    UNROLL
    for (int i = 0; i < Slice::kLoads; ++i) {
      const int index = static_cast<int>(threadIdx.x) + i * kF32Threads;
      const int per_row = (kAlongK ? kDepth : kWidth) / 4;
      const int64_t row = (kAlongK ? width0 : k0) + index / per_row;
      const int64_t col = (kAlongK ? k0 : width0) + index % per_row * 4;
      chunk[i] = gpu::F4{0, 0, 0, 0};
      if (index < Slice::kChunks && row < stop && col < from.cols) {
        chunk[i] = gpu::load_vec<gpu::F4>(from.data + row * from.cols + col);
        if (drop.active) drop_four(drop, row_place(drop, row), col, chunk[i]);
      }
    }
  }
  __device__ __forceinline__ void store(float* slice) const {
    UNROLL
    for (int i = 0; i < Slice::kLoads; ++i) {
      const int index = static_cast<int>(threadIdx.x) + i * kF32Threads;
      if (index >= Slice::kChunks) break;
      const int per_row = (kAlongK ? kDepth : kWidth) / 4;
      const int row = index / per_row;
      const int col = index % per_row * 4;
      if constexpr (kAlongK) {
        slice[(col + 0) * Slice::kStride + row] = chunk[i].x;
        slice[(col + 1) * Slice::kStride + row] = chunk[i].y;
        slice[(col + 2) * Slice::kStride + row] = chunk[i].z;
        slice[(col + 3) * Slice::kStride + row] = chunk[i].w;
      } else {
        gpu::store_vec(slice + row * Slice::kStride + col, chunk[i]);
      }
    }
  }
};

// What thread `side` (0..15) of a row of threads owns of kWidth rows or columns: groups of four
// that lie 64 apart, or neighbours when there are fewer than four each.
template <int kWidth>
struct F32Share {
  static constexpr int kOwn = kWidth / kF32Side;
  static constexpr int kGroup = kOwn < 4 ? kOwn : 4;
  __device__ __forceinline__ static int at(int side, int i) {
    return i / kGroup * (kF32Side * kGroup) + side * kGroup + i % kGroup;
  }
  __device__ __forceinline__ static void read(const float* row, int side, float (&v)[kOwn]) {
    if constexpr (kGroup == 4) {
      UNROLL
      for (int i = 0; i < kOwn; i += 4) {
        const auto four = gpu::load_vec<gpu::F4>(row + at(side, i));
        v[i] = four.x, v[i + 1] = four.y, v[i + 2] = four.z, v[i + 3] = four.w;
      }
    } else {
      UNROLL
      for (int i = 0; i < kOwn; ++i) v[i] = row[at(side, i)];
    }
  }
};

template <int kRows, int kCols, int kDepth>
struct F32Tile {
  using RowSlice = F32Slice<kRows, kDepth>;
  using ColSlice = F32Slice<kCols, kDepth>;
  using RowShare = F32Share<kRows>;
  using ColShare = F32Share<kCols>;
  float* rows;  // two slices
  float* cols;  // two slices

  SCGRAFT_HD explicit F32Tile(gpu::SharedCarver& carver)
      : rows(carver.take<float>(2 * RowSlice::kFloats)),
        cols(carver.take<float>(2 * ColSlice::kFloats)) {}
  static int64_t shared_bytes() {
    gpu::SharedCarver carver(nullptr);
    const F32Tile tile(carver);
    return carver.used();
  }

  // acc += the product of all slices of k in [begin, end).
  // load(k, row_loads, col_loads) fetches the slices that begin at k.
  template <class RowLoads, class ColLoads, class Load>
  __device__ __forceinline__ void multiply(int64_t begin, int64_t end, Load&& load,
                                           float (&acc)[RowShare::kOwn][ColShare::kOwn]) {
    const int ty = static_cast<int>(threadIdx.x) / kF32Side;
    const int tx = static_cast<int>(threadIdx.x) % kF32Side;
    RowLoads row_loads;
    ColLoads col_loads;
    load(begin, row_loads, col_loads);
    row_loads.store(rows);
    col_loads.store(cols);
    gpu::sync_block();
    int buffer = 0;
    for (int64_t k = begin; k < end; k += kDepth) {
      const bool more = k + kDepth < end;
      if (more) load(k + kDepth, row_loads, col_loads);
      UNROLL
      for (int d = 0; d < kDepth; ++d) {
        float a[RowShare::kOwn], b[ColShare::kOwn];
        RowShare::read(rows + buffer * RowSlice::kFloats + d * RowSlice::kStride, ty, a);
        ColShare::read(cols + buffer * ColSlice::kFloats + d * ColSlice::kStride, tx, b);
        UNROLL
        for (int i = 0; i < RowShare::kOwn; ++i) {
          UNROLL
          for (int j = 0; j < ColShare::kOwn; ++j) acc[i][j] += a[i] * b[j];
        }
      }
      buffer ^= 1;
      if (more) {
        row_loads.store(rows + buffer * RowSlice::kFloats);
        col_loads.store(cols + buffer * ColSlice::kFloats);
      }
      gpu::sync_block();
    }
  }
};

// y = x w^T (kOutIn: w [n, k]) or x w (w [k, n]), and the rest of the epilogue.
//   x [rows, k]; drop: of x, when kDropX
// Bytes: x once per column of tiles, w once per row of tiles, the rest from the second-level cache,
// since blocks that share rows of x run together. Bound by the multiply-adds of the CUDA cores.
template <int kRows, int kCols, int kDepth, bool kOutIn, bool kDropX>
__global__ void __launch_bounds__(kF32Threads, kRows* kCols >= 128 * 128 ? 1 : 2)
    linear_f32_kernel(Operand<float> x, Operand<float> w, int64_t k, DeviceDropout drop,
                      Epilogue<float> e) {
  using Tile = F32Tile<kRows, kCols, kDepth>;
  gpu::SharedCarver carver(gpu::shared_memory());
  Tile tile(carver);
  const int64_t tiles = ceil_div(e.n, kCols);
  const int64_t row0 = int64_t{blockIdx.x} / tiles * kRows;
  const int64_t col0 = int64_t{blockIdx.x} % tiles * kCols;

  constexpr int kOwnRows = Tile::RowShare::kOwn;
  constexpr int kOwnCols = Tile::ColShare::kOwn;
  float acc[kOwnRows][kOwnCols] = {};
  tile.template multiply<F32Loads<kRows, kDepth, true>, F32Loads<kCols, kDepth, kOutIn>>(
      0, k,
      [&](int64_t at, auto& row_loads, auto& col_loads) {
        row_loads.load(x, row0, at, x.rows, kDropX ? drop : DeviceDropout{});
        col_loads.load(w, col0, at, w.rows, DeviceDropout{});
      },
      acc);

  const int ty = static_cast<int>(threadIdx.x) / kF32Side;
  const int tx = static_cast<int>(threadIdx.x) % kF32Side;
  constexpr int kGroup = Tile::ColShare::kGroup;
  auto* y = static_cast<float*>(e.y);
  UNROLL
  for (int i = 0; i < kOwnRows; ++i) {
    const int64_t row = row0 + Tile::RowShare::at(ty, i);
    if (row >= e.rows) break;
    UNROLL
    for (int j = 0; j < kOwnCols; j += kGroup) {
      const int64_t col = col0 + Tile::ColShare::at(tx, j);
      if (col >= e.n) break;
      float v[kGroup];
      UNROLL
      for (int c = 0; c < kGroup; ++c) v[c] = acc[i][j + c];
      if constexpr (kGroup == 4) {
        for (int t = 0; t < e.terms; ++t) {
          const LowRankShare<float>& term = e.term[t];
          const float* u = term.u.data + row * term.u.cols;
          gpu::F4 share{0, 0, 0, 0};
          for (int64_t r = 0; r < term.second.rows; ++r) {
            const auto s = gpu::load_vec<gpu::F4>(term.second.data + r * term.second.cols + col);
            share.x += u[r] * s.x, share.y += u[r] * s.y;
            share.z += u[r] * s.z, share.w += u[r] * s.w;
          }
          if (term.drop.active) drop_four(term.drop, row_place(term.drop, row), col, share);
          v[0] += term.scale * share.x, v[1] += term.scale * share.y;
          v[2] += term.scale * share.z, v[3] += term.scale * share.w;
        }
      }
      float* to = y + row * e.n + col;
      UNROLL
      for (int c = 0; c < kGroup; ++c) {
        if (col + c >= e.n) break;
        v[c] += bias_at(e, col + c);
        if (e.accumulate) v[c] += to[c];
        if (e.gelu) {
          if (e.pre != nullptr) static_cast<float*>(e.pre)[row * e.n + col + c] = v[c];
          v[c] = gelu(v[c]);
        }
        if (e.residual != nullptr)
          v[c] += static_cast<const float*>(e.residual)[row * e.n + col + c];
      }
      if (kGroup == 4 && e.vectors) {
        gpu::store_vec(to, gpu::F4{v[0], v[1 % kGroup], v[2 % kGroup], v[3 % kGroup]});
      } else {
        UNROLL
        for (int c = 0; c < kGroup; ++c)
          if (col + c < e.n) to[c] = v[c];
      }
    }
  }
}

// One piece of a cell's share of g^T x: partial[piece, j, k] = sum over its rows of g[r, j] x[r,
// k]. See sum_pieces_kernel for what becomes of it. drop is that of x. Rows of a piece are summed
// in order.
template <int kRows, int kCols, int kDepth>
__global__ void __launch_bounds__(kF32Threads, 2)
    outer_f32_kernel(Operand<float> g, Operand<float> x, DeviceDropout drop, Pieces pieces,
                     float* partial) {
  using Tile = F32Tile<kRows, kCols, kDepth>;
  gpu::SharedCarver carver(gpu::shared_memory());
  Tile tile(carver);
  const int64_t tiles = ceil_div(x.cols, kCols);
  const int64_t piece = int64_t{blockIdx.x} / tiles;
  const int64_t row0 = int64_t{blockIdx.y} * kRows;
  const int64_t col0 = int64_t{blockIdx.x} % tiles * kCols;
  const PieceRows rows = pieces.rows(piece);
  if (rows.begin >= rows.end) return;

  constexpr int kOwnRows = Tile::RowShare::kOwn;
  constexpr int kOwnCols = Tile::ColShare::kOwn;
  float acc[kOwnRows][kOwnCols] = {};
  tile.template multiply<F32Loads<kRows, kDepth, false>, F32Loads<kCols, kDepth, false>>(
      rows.begin, rows.end,
      [&](int64_t at, auto& row_loads, auto& col_loads) {
        row_loads.load(g, row0, at, rows.end, DeviceDropout{});
        col_loads.load(x, col0, at, rows.end, drop);
      },
      acc);

  const int ty = static_cast<int>(threadIdx.x) / kF32Side;
  const int tx = static_cast<int>(threadIdx.x) % kF32Side;
  UNROLL
  for (int i = 0; i < kOwnRows; ++i) {
    const int64_t row = row0 + Tile::RowShare::at(ty, i);
    if (row >= g.cols) break;
    UNROLL
    for (int j = 0; j < kOwnCols; j += 4) {
      const int64_t col = col0 + Tile::ColShare::at(tx, j);
      if (col >= x.cols) break;
      gpu::store_vec(partial + (piece * g.cols + row) * x.cols + col,
                     gpu::F4{acc[i][j], acc[i][j + 1], acc[i][j + 2], acc[i][j + 3]});
    }
  }
}

}  // namespace scgraft::cuda
