// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <bit>
#include <type_traits>

#include "kernels/linear_operands.cuh"

// Products of bf16 or f16 on tensor cores, with sums in f32.
//
// Tiles of both operands arrive in shared memory several slices of k ahead. kTuring selects what
// compute capability 7.5 has: f16 only, m16n8k8, and copies that pass through registers.
namespace scgraft::cuda {

inline constexpr int kMmaDepth = 32;  // values of k in one slice

// d [16, 8] += a [16, 16] b [16, 8]
template <class T, bool kTuring>
__device__ __forceinline__ void multiply_fragments(float (&d)[4], const uint32_t (&a)[4],
                                                   const uint32_t (&b)[2]) {
  if constexpr (kTuring) {
    const uint32_t a_low[2] = {a[0], a[1]}, a_high[2] = {a[2], a[3]};
    const uint32_t b_low[1] = {b[0]}, b_high[1] = {b[1]};
    gpu::mma_m16n8k8(d, a_low, b_low);
    gpu::mma_m16n8k8(d, a_high, b_high);
  } else {
    gpu::mma_m16n8k16<T>(d, a, b);
  }
}

// A slice of one operand in shared memory: kRows rows of kCols 16-bit elements. Chunks of 16 bytes
// are permuted within a row, so that the eight rows that ldmatrix reads at once, and the chunks
// that neighbouring threads store, lie in different banks.
template <class T, int kSliceRows, int kSliceCols, int kThreads>
struct MmaSlice {
  static constexpr int kRows = kSliceRows;
  static constexpr int kCols = kSliceCols;
  static constexpr int kPerRow = kCols / 8;
  static constexpr int kChunks = kRows * kPerRow;
  static constexpr int kLoads = (kChunks + kThreads - 1) / kThreads;
  static constexpr int kElements = kRows * kCols;
  static constexpr bool kWhole = kChunks % kThreads == 0;

  __device__ __forceinline__ static T* at(T* slice, int row, int chunk) {
    constexpr int kRowsPerLine = kPerRow >= 8 ? 1 : 8 / kPerRow;  // 128 bytes: every bank once
    constexpr int kMask = kPerRow >= 8 ? 7 : kPerRow - 1;
    return slice + row * kCols + (chunk ^ ((row / kRowsPerLine) & kMask)) * 8;
  }

  // Calls use(chunk in shared memory, row, column, i) for the chunks this thread moves.
  template <class Use>
  __device__ __forceinline__ static void each(T* slice, Use&& use) {
    UNROLL
    for (int i = 0; i < kLoads; ++i) {
      const int index = static_cast<int>(threadIdx.x) + i * kThreads;
      if (!kWhole && index >= kChunks) break;
      const int row = index / kPerRow;
      const int chunk = index % kPerRow;
      use(at(slice, row, chunk), row, chunk * 8, i);
    }
  }
};

// Copies of slices into a ring of kStages of them, per thread.
template <class T, class Slice, bool kTuring>
struct MmaLoads {
  gpu::U4 held[kTuring ? Slice::kLoads : 1];

  // Starts the copy of rows row0.. and columns col0.. of `from`; rows from `stop` on are zeros.
  __device__ __forceinline__ void start(T* slice, const Operand<T>& from, int64_t row0,
                                        int64_t col0, int64_t stop) {
    // Within a slice 32 bits are enough.
    const T* corner = from.data + row0 * from.cols + col0;
    const int stride = static_cast<int>(from.cols);
    const int64_t rows_left = stop - row0;
    const int rows = rows_left < Slice::kRows ? static_cast<int>(rows_left) : Slice::kRows;
    const int64_t cols_left = from.cols - col0;
    const int cols = cols_left < Slice::kCols ? static_cast<int>(cols_left) : Slice::kCols;
    Slice::each(slice, [&](T* to, int row, int col, int i) {
      const bool valid = row < rows && col < cols;
      const T* source = valid ? corner + (row * stride + col) : from.data;
      if constexpr (kTuring) {
        held[i] = valid ? gpu::load_vec<gpu::U4>(source) : gpu::U4{0, 0, 0, 0};
      } else {
        gpu::cp_async16(to, source, valid);
      }
    });
  }
  // Turing: puts what start() fetched into the slice.
  __device__ __forceinline__ void finish(T* slice) const {
    if constexpr (kTuring)
      Slice::each(slice, [&](T* to, int, int, int i) { gpu::store_vec(to, held[i]); });
  }
};

// A tile of kRows x kCols results. Warps form a grid of kWarpsDown x kWarpsAcross, so that each
// owns 32 rows or 16, and kWarpCols columns.
//
//   kRowsAlongK  the row operand is stored [row, k], else [k, row]
//   kColsAlongK  the column operand is stored [col, k], else [k, col]
template <class T, int kRows, int kCols, bool kRowsAlongK, bool kColsAlongK, bool kTuring,
          int kAcross = kRows >= 32 ? 2 : 4>
struct MmaTile {
  static constexpr int kBlocks = kRows >= 32 ? 2 : 1;  // of 16 rows per warp
  static constexpr int kWarpsDown = kRows / (16 * kBlocks);
  static constexpr int kWarpsAcross = kAcross;
  static constexpr int kWarps = kWarpsDown * kWarpsAcross;
  static constexpr int kThreads = kWarps * gpu::kWarp;
  static constexpr int kWarpCols = kCols / kWarpsAcross;
  static constexpr int kFragments = kWarpCols / 8;
  static_assert(kFragments % 2 == 0);
  static constexpr int kStages = kTuring ? 2 : 3;

  using RowSlice =
      MmaSlice<T, kRowsAlongK ? kRows : kMmaDepth, kRowsAlongK ? kMmaDepth : kRows, kThreads>;
  using ColSlice =
      MmaSlice<T, kColsAlongK ? kCols : kMmaDepth, kColsAlongK ? kMmaDepth : kCols, kThreads>;
  static constexpr int kSliceElements = RowSlice::kElements + ColSlice::kElements;
  using Sums = float[kBlocks][kFragments][4];

  T* slices;

  __device__ __forceinline__ static int warp_row() {
    return gpu::warp() / kWarpsAcross * 16 * kBlocks;
  }
  __device__ __forceinline__ static int warp_col() {
    return gpu::warp() % kWarpsAcross * kWarpCols;
  }

  __device__ __forceinline__ T* row_slice(int number) const {
    return slices + number % kStages * kSliceElements;
  }
  __device__ __forceinline__ T* col_slice(int number) const {
    return row_slice(number) + RowSlice::kElements;
  }

  // acc += the products of `count` slices; ends with a barrier, after which the slices are free.
  //   start(number, row_loads, col_loads, row_slice, col_slice) starts the copies of one
  //   arrived(number, row_slice, col_slice) may change the chunks that this thread copied
  template <class Start, class Arrived>
  __device__ __forceinline__ void multiply(int count, Start&& start, Arrived&& arrived,
                                           Sums& acc) const {
    MmaLoads<T, RowSlice, kTuring> row_loads;
    MmaLoads<T, ColSlice, kTuring> col_loads;
    if constexpr (kTuring) {
      if (count > 0) start(0, row_loads, col_loads, row_slice(0), col_slice(0));
      for (int s = 0; s < count; ++s) {
        // Slice s - 2 lay here; all have read it before the barrier of s - 1.
        row_loads.finish(row_slice(s));
        col_loads.finish(col_slice(s));
        arrived(s, row_slice(s), col_slice(s));
        gpu::sync_block();
        if (s + 1 < count) start(s + 1, row_loads, col_loads, row_slice(s + 1), col_slice(s + 1));
        multiply_slice(row_slice(s), col_slice(s), acc);
      }
    } else {
      UNROLL
      for (int s = 0; s < kStages - 1; ++s) {
        if (s < count) start(s, row_loads, col_loads, row_slice(s), col_slice(s));
        gpu::cp_async_commit();
      }
      for (int s = 0; s < count; ++s) {
        gpu::cp_async_wait<kStages - 2>();
        arrived(s, row_slice(s), col_slice(s));
        // Everybody's chunks of slice s are there, and nobody reads slice s - 1 any more.
        gpu::sync_block();
        const int next = s + kStages - 1;
        if (next < count) start(next, row_loads, col_loads, row_slice(next), col_slice(next));
        gpu::cp_async_commit();
        multiply_slice(row_slice(s), col_slice(s), acc);
      }
      gpu::cp_async_wait<0>();
    }
    gpu::sync_block();
  }

  __device__ __forceinline__ static void multiply_slice(T* rows, T* cols, Sums& acc) {
    const int lane = gpu::lane();
    multiply_slice(
        [&](int m, int k, uint32_t(&a)[4]) {
          const int row = warp_row() + 16 * m;
          if constexpr (kRowsAlongK)
            gpu::ldmatrix_x4(a, RowSlice::at(rows, row + (lane & 15), k / 8 + (lane >> 4)));
          else
            gpu::ldmatrix_x4_trans(a, RowSlice::at(rows, k + (lane & 7) + 8 * (lane >> 4),
                                                   row / 8 + ((lane >> 3) & 1)));
        },
        cols, acc);
  }

  // load_rows(m, k, a) loads the fragment of rows 16 m.. of this warp and k.. of the slice.
  template <class LoadRows>
  __device__ __forceinline__ static void multiply_slice(LoadRows&& load_rows, T* cols, Sums& acc) {
    const int lane = gpu::lane();
    UNROLL
    for (int k = 0; k < kMmaDepth; k += 16) {
      uint32_t a[kBlocks][4];
      UNROLL
      for (int m = 0; m < kBlocks; ++m) load_rows(m, k, a[m]);
      UNROLL
      for (int n = 0; n < kFragments; n += 2) {
        const int col = warp_col() + 8 * n;
        uint32_t b[4];
        if constexpr (kColsAlongK)
          gpu::ldmatrix_x4(
              b, ColSlice::at(cols, col + (lane & 7) + 8 * (lane >> 4), k / 8 + ((lane >> 3) & 1)));
        else
          gpu::ldmatrix_x4_trans(b, ColSlice::at(cols, k + (lane & 15), col / 8 + (lane >> 4)));
        const uint32_t left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
        UNROLL
        for (int m = 0; m < kBlocks; ++m) {
          multiply_fragments<T, kTuring>(acc[m][n], a[m], left);
          multiply_fragments<T, kTuring>(acc[m][n + 1], a[m], right);
        }
      }
    }
  }
};

// The product, and what its epilogue keeps in shared memory after the slices: the results of 16
// rows of each warp in f32, so that rows are read and written in whole chunks, and which of its
// features a dropout keeps, one byte per chunk.
template <class T, int kRows, int kCols, bool kOutIn, bool kTuring>
struct LinearTile : MmaTile<T, kRows, kCols, true, kOutIn, kTuring> {
  using Base = MmaTile<T, kRows, kCols, true, kOutIn, kTuring>;
  static constexpr int kStageStride = Base::kWarpCols + 8;  // rows begin in different banks
  static constexpr int kStageBytes = Base::kWarps * 16 * kStageStride * 4;
  static constexpr int kSliceBytes = Base::kStages * Base::kSliceElements * 2;
  static constexpr int kKeptBytes = Base::kWarps * 32 * Base::kFragments;
  float* stage;   // of this warp: [16, kStageStride]
  uint8_t* kept;  // of this warp: [32, kFragments]

  SCGRAFT_HD LinearTile(gpu::SharedCarver& carver, int warp) {
    constexpr int kBytes = kSliceBytes > kStageBytes ? kSliceBytes : kStageBytes;
    void* base = carver.take<uint8_t>(kBytes, 128);
    this->slices = static_cast<T*>(base);
    stage = static_cast<float*>(base) + warp * 16 * kStageStride;
    kept = carver.take<uint8_t>(kKeptBytes) + warp * 32 * Base::kFragments;
  }
  static int64_t shared_bytes() {
    gpu::SharedCarver carver(nullptr);
    carver.take<uint8_t>(kSliceBytes > kStageBytes ? kSliceBytes : kStageBytes, 128);
    carver.take<uint8_t>(kKeptBytes);
    return carver.used();
  }
};

// Two neighbouring elements of a row as one register of a fragment.
template <class T>
__device__ __forceinline__ uint32_t load_pair(const Operand<T>& from, int64_t row, int64_t col) {
  return gpu::load_vec<uint32_t>(from.data + row * from.cols + col);
}

__device__ __forceinline__ void store_pair(float* to, float first, float second) {
  gpu::store_vec(to, gpu::U2{std::bit_cast<uint32_t>(first), std::bit_cast<uint32_t>(second)});
}

// acc += scale * (u second^T) for the rows and columns of this warp, from col0 on. The share has
// sums of its own, so that second = 0 leaves acc as it was, bit for bit.
//   load_u(m, k, a)     loads the fragment of rows 16 m.. of this warp and ranks k..
//   keep(m, f, share)   zeroes what a dropout of the share drops
template <class Tile, class T, bool kTuring, class LoadU, class KeepShare>
__device__ __forceinline__ void add_share(const LowRankShare<T>& term, int64_t col0, int64_t n,
                                          LoadU&& load_u, KeepShare&& keep,
                                          typename Tile::Sums& acc) {
  const int group = gpu::lane() / 4;
  const int pair = gpu::lane() % 4 * 2;
  UNROLL
  for (int m = 0; m < Tile::kBlocks; ++m) {
    uint32_t first[4];
    load_u(m, 0, first);
    UNROLL
    for (int f = 0; f < Tile::kFragments; ++f) {
      // Columns behind the end repeat the last one: their results are not stored.
      const int64_t col = col0 + 8 * f + group < n ? col0 + 8 * f + group : n - 1;
      float share[4] = {0, 0, 0, 0};
      uint32_t b[2] = {load_pair(term.second, col, pair), load_pair(term.second, col, pair + 8)};
      multiply_fragments<T, kTuring>(share, first, b);
      for (int64_t k = 16; k < term.u.cols; k += 16) {
        uint32_t a[4];
        load_u(m, k, a);
        b[0] = load_pair(term.second, col, k + pair);
        b[1] = load_pair(term.second, col, k + pair + 8);
        multiply_fragments<T, kTuring>(share, a, b);
      }
      keep(m, f, share);
      UNROLL
      for (int i = 0; i < 4; ++i) acc[m][f][i] += term.scale * share[i];
    }
  }
}

// The same with u in memory, and with the dropout of the term.
template <class Tile, class T, bool kTuring>
__device__ __forceinline__ void add_share_of_rows(const LowRankShare<T>& term, int64_t row0,
                                                  int64_t col0, int64_t rows, int64_t n,
                                                  uint8_t* kept, typename Tile::Sums& acc) {
  const int group = gpu::lane() / 4;
  const int pair = gpu::lane() % 4 * 2;
  if (term.drop.active) {
    gpu::sync_warp();
    for (int i = gpu::lane(); i < 16 * Tile::kBlocks * Tile::kFragments; i += gpu::kWarp) {
      const int64_t row = row0 + i / Tile::kFragments;
      const int64_t col = col0 + i % Tile::kFragments * 8;
      uint32_t flags = 0;
      if (row < rows && col < n) {
        const PhiloxCounter bits =
            piece_bits(term.drop, row_place(term.drop, row), static_cast<int>(col));
        UNROLL
        for (int f = 0; f < 8; ++f) flags |= static_cast<uint32_t>(keeps(term.drop, bits, f)) << f;
      }
      kept[i] = static_cast<uint8_t>(flags);
    }
    gpu::sync_warp();
  }
  // Rows behind the end repeat the last one: their results are not stored.
  const auto row_at = [&](int64_t row) { return row < rows ? row : rows - 1; };
  add_share<Tile, T, kTuring>(
      term, col0, n,
      [&](int m, int64_t k, uint32_t(&a)[4]) {
        const int64_t upper = row_at(row0 + 16 * m + group);
        const int64_t lower = row_at(row0 + 16 * m + group + 8);
        a[0] = load_pair(term.u, upper, k + pair);
        a[1] = load_pair(term.u, lower, k + pair);
        a[2] = load_pair(term.u, upper, k + pair + 8);
        a[3] = load_pair(term.u, lower, k + pair + 8);
      },
      [&](int m, int f, float(&share)[4]) {
        if (!term.drop.active) return;
        UNROLL
        for (int i = 0; i < 4; ++i) {
          const uint32_t flags = kept[(16 * m + group + 8 * (i / 2)) * Tile::kFragments + f];
          if ((flags >> (pair + i % 2) & 1u) == 0) share[i] = 0;
        }
      },
      acc);
}

// Eight results of one row, whose sums are in v: the rest of the sum, rounded once and stored.
template <class T>
__device__ __forceinline__ void store_results(const Epilogue<T>& e, int64_t row, int64_t col,
                                              float (&v)[8]) {
  const int64_t at = row * e.n + col;
  const auto finish = [&]<class Y, bool kVectors>(Y* y, std::bool_constant<kVectors>) {
    const int count = e.n - col < 8 ? static_cast<int>(e.n - col) : 8;
    if (e.bias != nullptr) {
      UNROLL
      for (int i = 0; i < 8; ++i)
        if (i < count) v[i] += bias_at(e, col + i);
    }
    if (e.accumulate) {
      float old[8];
      load_piece<kVectors>(y + at, 0, count, old);
      UNROLL
      for (int i = 0; i < 8; ++i) v[i] += old[i];
    }
    if (e.gelu) {
      // What is kept, or comes again when the product is recomputed, is what gelu is taken of.
      UNROLL
      for (int i = 0; i < 8; ++i) v[i] = gpu::to_f32(gpu::from_f32<Y>(v[i]));
      if (e.pre != nullptr) store_piece<kVectors>(static_cast<Y*>(e.pre) + at, 0, count, v);
      UNROLL
      for (int i = 0; i < 8; ++i) v[i] = gelu(v[i]);
    }
    if (e.relu) {
      // As relu_dropout_kernel, of the z that would have been stored.
      UNROLL
      for (int i = 0; i < 8; ++i) {
        v[i] = i < count ? gpu::to_f32(gpu::from_f32<Y>(v[i])) : 0.0f;
        v[i] = v[i] <= 0 ? 0.0f : v[i];
      }
      if (e.dropout.active)
        drop_piece(e.dropout, row_place(e.dropout, row), static_cast<int>(col), v);
      if (e.bits != nullptr) {
        uint32_t passes = 0;
        UNROLL
        for (int i = 0; i < 8; ++i) passes |= static_cast<uint32_t>(v[i] > 0) << i;
        e.bits[row * ((e.n + 7) / 8) + col / 8] = static_cast<uint8_t>(passes);
      }
    }
    if (e.residual != nullptr) {
      float other[8];
      load_piece<kVectors>(static_cast<const Y*>(e.residual) + at, 0, count, other);
      UNROLL
      for (int i = 0; i < 8; ++i) v[i] += other[i];
    }
    store_piece<kVectors>(y + at, 0, count, v);
  };
  if (e.y_is_f32) {
    if (e.vectors)
      finish(static_cast<float*>(e.y), std::true_type{});
    else
      finish(static_cast<float*>(e.y), std::false_type{});
  } else {
    if (e.vectors)
      finish(static_cast<T*>(e.y), std::true_type{});
    else
      finish(static_cast<T*>(e.y), std::false_type{});
  }
}

// y = x w^T (kOutIn: w [n, k]) or x w (w [k, n]), and the rest of the epilogue.
//
// A block owns kRows x kCols results. Bytes: x once per column of tiles and w once per row of
// tiles, out of the second-level cache, since blocks that share rows of x run together; y once.
// Bound by the tensor cores from about k = 512 on, below that by memory.
template <class T, int kRows, int kCols, bool kOutIn, bool kTuring>
__global__ void __launch_bounds__(LinearTile<T, kRows, kCols, kOutIn, kTuring>::kThreads,
                                  kTuring ? 1 : 2)
    linear_mma_kernel(Operand<T> x, Operand<T> w, int64_t k, Epilogue<T> e) {
  using Tile = LinearTile<T, kRows, kCols, kOutIn, kTuring>;
  gpu::SharedCarver carver(gpu::shared_memory());
  const Tile tile(carver, gpu::warp());
  const int64_t tiles = ceil_div(e.n, kCols);
  const int64_t row0 = int64_t{blockIdx.x} / tiles * kRows;
  const int64_t col0 = int64_t{blockIdx.x} % tiles * kCols;

  typename Tile::Sums acc = {};
  tile.multiply(
      static_cast<int>(ceil_div(k, kMmaDepth)),
      [&](int s, auto& row_loads, auto& col_loads, T* row_slice, T* col_slice) {
        row_loads.start(row_slice, x, row0, int64_t{s} * kMmaDepth, x.rows);
        if constexpr (kOutIn)
          col_loads.start(col_slice, w, col0, int64_t{s} * kMmaDepth, w.rows);
        else
          col_loads.start(col_slice, w, int64_t{s} * kMmaDepth, col0, w.rows);
      },
      [](int, T*, T*) {}, acc);

  const int64_t warp_row0 = row0 + Tile::warp_row();
  const int64_t warp_col0 = col0 + Tile::warp_col();
  for (int t = 0; t < e.terms; ++t)
    add_share_of_rows<Tile, T, kTuring>(e.term[t], warp_row0, warp_col0, e.rows, e.n, tile.kept,
                                        acc);

  const int group = gpu::lane() / 4;
  const int pair = gpu::lane() % 4 * 2;
  constexpr int kLanesPerRow = Tile::kFragments;  // a lane takes eight columns
  UNROLL
  for (int m = 0; m < Tile::kBlocks; ++m) {
    gpu::sync_warp();
    UNROLL
    for (int f = 0; f < Tile::kFragments; ++f) {
      float* to = tile.stage + group * Tile::kStageStride + 8 * f + pair;
      store_pair(to, acc[m][f][0], acc[m][f][1]);
      store_pair(to + 8 * Tile::kStageStride, acc[m][f][2], acc[m][f][3]);
    }
    gpu::sync_warp();
    for (int i = gpu::lane(); i < 16 * kLanesPerRow; i += gpu::kWarp) {
      const int64_t row = warp_row0 + 16 * m + i / kLanesPerRow;
      const int64_t col = warp_col0 + i % kLanesPerRow * 8;
      if (row < e.rows && col < e.n) {
        float v[8];
        load_piece<true>(tile.stage + i / kLanesPerRow * Tile::kStageStride + i % kLanesPerRow * 8,
                         0, 8, v);
        store_results(e, row, col, v);
      }
    }
  }
}

inline constexpr int kProjectWarps = 4;
inline constexpr int kProjectThreads = kProjectWarps * gpu::kWarp;

// acc += x first^T for 16 rows of x and ranks [col0, col0 + kFragments * 8) of a narrow `first`
// [rank, k], in steps of 32 k, of which kSteps are loaded at a time.
//   load_row(h, col)   the chunk of features [col, col + 8) of row gpu::lane() / 4 + 8 h; zeros
//                      where there is none
//
// Lanes load whole chunks of both operands: which k a register of a fragment stands for may be
// chosen freely as long as it is the same for both, and so the eight features of a chunk, which
// share a Philox block, stay with one lane.
template <class T, int kFragments, int kSteps, bool kTuring, class LoadRow>
__device__ __forceinline__ void project_fragments(const Operand<T>& first, int64_t col0,
                                                  int64_t depth, LoadRow&& load_row,
                                                  float (&acc)[kFragments][4]) {
  const int group = gpu::lane() / 4;
  const int quarter = gpu::lane() % 4;
  for (int64_t k = 0; k < depth; k += 32 * kSteps) {
    gpu::U4 a[kSteps][2], b[kSteps][kFragments];
    UNROLL
    for (int s = 0; s < kSteps; ++s) {
      const int64_t col = k + 32 * s + 8 * quarter;
      UNROLL
      for (int h = 0; h < 2; ++h) a[s][h] = load_row(h, col);
      UNROLL
      for (int f = 0; f < kFragments; ++f) {
        const int64_t n = col0 + 8 * f + group;
        b[s][f] = n < first.rows && col < first.cols
                      ? gpu::load_vec<gpu::U4>(first.data + n * first.cols + col)
                      : gpu::U4{0, 0, 0, 0};
      }
    }
    UNROLL
    for (int s = 0; s < kSteps; ++s) {
      if (k + 32 * s >= depth) break;
      const uint32_t low[4] = {a[s][0].x, a[s][1].x, a[s][0].y, a[s][1].y};
      const uint32_t high[4] = {a[s][0].z, a[s][1].z, a[s][0].w, a[s][1].w};
      UNROLL
      for (int f = 0; f < kFragments; ++f) {
        const uint32_t b_low[2] = {b[s][f].x, b[s][f].y}, b_high[2] = {b[s][f].z, b[s][f].w};
        multiply_fragments<T, kTuring>(acc[f], low, b_low);
        multiply_fragments<T, kTuring>(acc[f], high, b_high);
      }
    }
  }
}

// u = keep(x) first^T for a narrow `first` [rank, k], rounded to T. What is kept is not scaled.
//   u [rows, rank]; rank a multiple of 16, columns of `first` and x a multiple of 8
//
// A warp owns 16 rows and kFragments * 8 columns. Bytes: x once (per kFragments * 8 columns),
// `first` from the first-level cache. Bound by memory.
template <class T, int kFragments, bool kTuring>
__global__ void __launch_bounds__(kProjectThreads)
    project_mma_kernel(Operand<T> x, Operand<T> first, DeviceDropout drop, T* u) {
  const int group = gpu::lane() / 4;
  const int quarter = gpu::lane() % 4;
  const int64_t row0 = (int64_t{blockIdx.x} * kProjectWarps + gpu::warp()) * 16;
  const int64_t col0 = int64_t{blockIdx.y} * kFragments * 8;
  if (row0 >= x.rows) return;
  const int64_t rank = first.rows;
  const int64_t row[2] = {row0 + group, row0 + group + 8};
  RowPlace place[2] = {};
  UNROLL
  for (int h = 0; h < 2; ++h)
    if (row[h] < x.rows) place[h] = row_place(drop, row[h]);

  float acc[kFragments][4] = {};
  project_fragments<T, kFragments, 1, kTuring>(
      first, col0, x.cols,
      [&](int h, int64_t col) {
        gpu::U4 chunk{0, 0, 0, 0};
        if (row[h] < x.rows && col < x.cols) {
          chunk = gpu::load_vec<gpu::U4>(x.data + row[h] * x.cols + col);
          if (drop.active) drop_eight(drop, place[h], col, chunk);
        }
        return chunk;
      },
      acc);
  UNROLL
  for (int f = 0; f < kFragments; ++f) {
    const int64_t n = col0 + 8 * f + 2 * quarter;
    if (n >= rank) break;
    UNROLL
    for (int h = 0; h < 2; ++h)
      if (row[h] < x.rows)
        gpu::store_vec(u + row[h] * rank + n, gpu::pack2<T>(acc[f][2 * h], acc[f][2 * h + 1]));
  }
}

template <class T, int kRows, int kCols, bool kTuring>
struct OuterTile : MmaTile<T, kRows, kCols, false, false, kTuring> {
  using Base = MmaTile<T, kRows, kCols, false, false, kTuring>;
  SCGRAFT_HD explicit OuterTile(gpu::SharedCarver& carver) {
    this->slices = carver.take<T>(Base::kStages * Base::kSliceElements, 128);
  }
  static int64_t shared_bytes() {
    gpu::SharedCarver carver(nullptr);
    const OuterTile tile(carver);
    return carver.used();
  }
};

// One piece of a cell's share of g^T x, as outer_f32_kernel() in kernels/linear_f32.cuh:
// partial[piece, j, k] = sum over its rows of g[r, j] keep(x[r, k]).
template <class T, int kRows, int kCols, bool kTuring>
__global__ void __launch_bounds__(OuterTile<T, kRows, kCols, kTuring>::kThreads, kTuring ? 2 : 3)
    outer_mma_kernel(Operand<T> g, Operand<T> x, DeviceDropout drop, Pieces pieces,
                     float* partial) {
  using Tile = OuterTile<T, kRows, kCols, kTuring>;
  gpu::SharedCarver carver(gpu::shared_memory());
  const Tile tile(carver);
  const int64_t tiles = ceil_div(x.cols, kCols);
  const int64_t piece = int64_t{blockIdx.x} / tiles;
  const int64_t row0 = int64_t{blockIdx.y} * kRows;
  const int64_t col0 = int64_t{blockIdx.x} % tiles * kCols;
  const PieceRows rows = pieces.rows(piece);
  if (rows.begin >= rows.end) return;

  typename Tile::Sums acc = {};
  tile.multiply(
      static_cast<int>(ceil_div(rows.end - rows.begin, kMmaDepth)),
      [&](int s, auto& row_loads, auto& col_loads, T* row_slice, T* col_slice) {
        row_loads.start(row_slice, g, rows.begin + int64_t{s} * kMmaDepth, row0, rows.end);
        col_loads.start(col_slice, x, rows.begin + int64_t{s} * kMmaDepth, col0, rows.end);
      },
      [&](int s, T*, T* col_slice) {
        if (!drop.active) return;
        Tile::ColSlice::each(col_slice, [&](T* chunk, int row, int col, int) {
          const int64_t r = rows.begin + int64_t{s} * kMmaDepth + row;
          if (r >= rows.end || col0 + col >= x.cols) return;
          auto v = gpu::load_vec<gpu::U4>(chunk);
          drop_eight(drop, row_place(drop, r), col0 + col, v);
          gpu::store_vec(chunk, v);
        });
      },
      acc);

  const int group = gpu::lane() / 4;
  const int pair = gpu::lane() % 4 * 2;
  UNROLL
  for (int m = 0; m < Tile::kBlocks; ++m) {
    UNROLL
    for (int f = 0; f < Tile::kFragments; ++f) {
      const int64_t col = col0 + Tile::warp_col() + 8 * f + pair;
      if (col >= x.cols) break;
      UNROLL
      for (int h = 0; h < 2; ++h) {
        const int64_t row = row0 + Tile::warp_row() + 16 * m + group + 8 * h;
        if (row >= g.cols) continue;
        float* to = partial + (piece * g.cols + row) * x.cols + col;
        store_pair(to, acc[m][f][2 * h], acc[m][f][2 * h + 1]);
      }
    }
  }
}

}  // namespace scgraft::cuda
