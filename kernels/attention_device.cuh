// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#include "kernels/dropout.h"
#include "kernels/packing.h"
#include "runtime/gpu/gpu.cuh"

// What attention.cu and attention_backward.cu share: which rows a block owns, dropout masks, and
// tiles of rows in shared memory for the two ways of multiplying (f32 on ordinary cores, 16-bit
// types on tensor cores).
namespace scgraft::cuda {

inline constexpr float kLog2E = 1.4426950408889634f;

// One call as every block sees it.
struct AttentionProblem {
  PackedRows queries;
  PackedRows keys;
  int64_t heads;
  int32_t head_dim;
  int32_t tiles;       // blocks of one (cell, head): enough for the longest cell
  float scale;         // 1 / sqrt(head_dim)
  bool aligned;        // all tensors, to 16 bytes
  uint32_t threshold;  // of dropout, 0..255; 0: nothing is dropped
  float kept;          // what dropout multiplies a kept probability with
  uint32_t site;
  uint32_t key[2];
  const int64_t* key_bits;  // AttentionMask, null or false where there is no such rule
  const int32_t* known;
  bool causal;
  bool masked;           // whether there is a rule
  int32_t prefix_rows;   // AttentionPrefix
  int32_t prefix_tiles;  // blocks of one (cell, head) that own rows of the prefix

  __device__ int64_t stride() const { return heads * head_dim; }
  // Whether every row can move four elements at a time.
  __device__ bool vectors() const { return aligned && head_dim % 4 == 0; }
};

// The (cell, head) of a block and the first row of the tile that it owns. Heads of a cell are
// neighbours on the grid and the tiles of a head next to each other, so that the rows they all read
// stay in L2.
struct AttentionBlock {
  int32_t head;
  int32_t first_query;  // packed rows of the cell
  int32_t first_key;
  int32_t queries;
  int32_t keys;
  int32_t begin;  // within the cell: of its queries or of its keys, below 0 of the prefix
  int32_t known;  // keys that a query other than themselves may see: the first ones of the cell
  int32_t first_word;  // of its key bits
  uint32_t cell_id;
};

// Keys of a cell of `keys` that others than themselves may see: the first ones.
inline __device__ int32_t known_keys(const AttentionProblem& p, uint32_t cell, int32_t keys) {
  if (p.known == nullptr) return keys;
  const int32_t known = p.known[cell];
  return known < 0 ? 0 : known < keys ? known : keys;
}

inline __device__ AttentionBlock attention_block(const AttentionProblem& p, int rows) {
  const uint32_t unit = blockIdx.x / static_cast<uint32_t>(p.tiles);
  const uint32_t cell = unit / static_cast<uint32_t>(p.heads);
  AttentionBlock b;
  b.head = static_cast<int32_t>(unit % static_cast<uint32_t>(p.heads));
  b.first_query = p.queries.offsets[cell];
  b.first_key = p.keys.offsets[cell];
  b.queries = p.queries.offsets[cell + 1] - b.first_query;
  b.keys = p.keys.offsets[cell + 1] - b.first_key;
  const auto tile = static_cast<int32_t>(blockIdx.x % static_cast<uint32_t>(p.tiles));
  b.begin = (tile - p.prefix_tiles) * rows;
  b.known = known_keys(p, cell, b.keys);
  b.first_word = b.first_key / 64 + static_cast<int32_t>(cell);
  b.cell_id = p.threshold > 0 ? static_cast<uint32_t>(p.keys.ids[cell]) : 0;
  return b;
}

// Bit l: whether key 16 * group + l is kept for a query (kernels/dropout.h).
inline __device__ uint32_t keep_bits(const AttentionProblem& p, const AttentionBlock& b,
                                     int32_t query, int32_t group) {
  const PhiloxCounter words = philox({p.site + (static_cast<uint32_t>(b.head) << 20), b.cell_id,
                                      static_cast<uint32_t>(query), static_cast<uint32_t>(group)},
                                     {p.key[0], p.key[1]});
  // byte >= threshold exactly when byte + 256 - threshold carries into bit 8; two bytes at a time.
  const uint32_t bias = (256 - p.threshold) * 0x00010001u;
  uint32_t bits = 0;
  UNROLL
  for (int w = 0; w < 4; ++w) {
    const uint32_t even = ((words[w] & 0x00ff00ffu) + bias) >> 8 & 0x00010001u;
    const uint32_t odd = ((words[w] >> 8 & 0x00ff00ffu) + bias) >> 7 & 0x00020002u;
    const uint32_t both = even | odd;  // bytes 0, 1 in bits 0, 1 and bytes 2, 3 in bits 16, 17
    bits |= ((both | both >> 14) & 0xfu) << (4 * w);
  }
  return bits;
}

// ---- f32 on ordinary cores --------------------------------------------------------------------

// Four neighbouring elements.
template <class T>
__device__ gpu::F4 load4(const T* p) {
  if constexpr (sizeof(T) == 4) {
    return gpu::load_vec<gpu::F4>(p);
  } else {
    const gpu::U2 pairs = gpu::load_vec<gpu::U2>(p);
    gpu::F4 x;
    gpu::unpack2<T>(pairs.x, x.x, x.y);
    gpu::unpack2<T>(pairs.y, x.z, x.w);
    return x;
  }
}
template <class T>
__device__ void store4(T* p, gpu::F4 x) {
  if constexpr (sizeof(T) == 4) {
    gpu::store_vec(p, x);
  } else {
    gpu::store_vec(p, gpu::U2{gpu::pack2<T>(x.x, x.y), gpu::pack2<T>(x.z, x.w)});
  }
}

// A tile of kRows rows of kDim f32 in shared memory. Rows lie kDim + 4 apart, so that eight rows
// read at the same column hit eight different groups of four banks.
template <int kRows, int kDim>
struct RowTile {
  static constexpr int kStride = kDim + 4;
  static constexpr int kSize = kRows * kStride;

  // Copies rows [begin, begin + kRows) of one head; zeros from row `rows` and column head_dim on.
  // Only whole vectors are worth the registers of several copies at a time.
  template <class T>
  static __device__ void load(float* tile, const T* head, const AttentionProblem& p, int begin,
                              int rows) {
    constexpr int kChunks = kDim / 4;
    const auto copy = [&](int c, auto&& four) {
      const int row = c / kChunks;
      const int column = c % kChunks * 4;
      gpu::F4 x{0, 0, 0, 0};
      if (begin + row < rows && column < p.head_dim)
        x = four(head + (begin + row) * p.stride() + column, p.head_dim - column);
      gpu::store_vec(tile + row * kStride + column, x);
    };
    const int step = static_cast<int>(blockDim.x);
    if (p.vectors()) {
      for (int c = static_cast<int>(threadIdx.x); c < kRows * kChunks; c += step)
        copy(c, [](const T* from, int) { return load4(from); });
    } else {
      KEEP_LOOP
      for (int c = static_cast<int>(threadIdx.x); c < kRows * kChunks; c += step)
        copy(c, [](const T* from, int left) {
          gpu::F4 x{gpu::to_f32(from[0]), 0, 0, 0};
          if (left > 1) x.y = gpu::to_f32(from[1]);
          if (left > 2) x.z = gpu::to_f32(from[2]);
          if (left > 3) x.w = gpu::to_f32(from[3]);
          return x;
        });
    }
  }
};

// Writes four neighbouring columns of a row of one head, as far as the row has them.
template <class T>
__device__ void store_columns(T* row, int column, gpu::F4 x, const AttentionProblem& p) {
  if (column >= p.head_dim) return;
  if (p.vectors()) return store4(row + column, x);
  row[column] = gpu::from_f32<T>(x.x);
  if (column + 1 < p.head_dim) row[column + 1] = gpu::from_f32<T>(x.y);
  if (column + 2 < p.head_dim) row[column + 2] = gpu::from_f32<T>(x.z);
  if (column + 3 < p.head_dim) row[column + 3] = gpu::from_f32<T>(x.w);
}

// A thread's share of products of tiles. A warp owns 16 rows of the first tile; thread (r, c) =
// (lane / 8, lane % 8) has its rows r + 4 i, i < 4. Of scores it has columns c + 8 j, of sums over
// rows of the second tile the groups of four columns c + 8 n.
inline __device__ int micro_row(int i) { return gpu::warp() * 16 + gpu::lane() / 8 + 4 * i; }
inline __device__ int micro_column(int j) { return gpu::lane() % 8 + 8 * j; }

inline __device__ float dot4(gpu::F4 a, gpu::F4 b, float sum) {
  return a.w * b.w + (a.z * b.z + (a.y * b.y + (a.x * b.x + sum)));
}

// s[i][j] = a[micro_row(i)] . b[micro_column(j)]
template <int kDim, int kColumns>
__device__ void micro_product(const float* a, const float* b, float (&s)[4][kColumns]) {
  constexpr int kStride = RowTile<1, kDim>::kStride;
  UNROLL
  for (int i = 0; i < 4; ++i) {
    UNROLL
    for (int j = 0; j < kColumns; ++j) s[i][j] = 0;
  }
  KEEP_LOOP
  for (int d = 0; d < kDim; d += 4) {
    gpu::F4 x[4], y[kColumns];
    UNROLL
    for (int i = 0; i < 4; ++i) x[i] = gpu::load_vec<gpu::F4>(a + micro_row(i) * kStride + d);
    UNROLL
    for (int j = 0; j < kColumns; ++j)
      y[j] = gpu::load_vec<gpu::F4>(b + micro_column(j) * kStride + d);
    UNROLL
    for (int i = 0; i < 4; ++i) {
      UNROLL
      for (int j = 0; j < kColumns; ++j) s[i][j] = dot4(x[i], y[j], s[i][j]);
    }
  }
}

// Weights [rows of the first tile, kColumns * 8] on their way from the threads that have them to
// those that sum with them: all of one warp. The stride puts four rows on different banks.
template <int kColumns>
struct WeightTile {
  static constexpr int kStride = kColumns * 8 + 8;

  static __device__ void put(float* tile, const float (&w)[4][kColumns]) {
    gpu::sync_warp();  // nobody still reads the weights before these
    UNROLL
    for (int i = 0; i < 4; ++i) {
      UNROLL
      for (int j = 0; j < kColumns; ++j) tile[micro_row(i) * kStride + micro_column(j)] = w[i][j];
    }
    gpu::sync_warp();
  }

  // sum[i] += sum over rows of b of weight[micro_row(i), row] * b[row], all of the thread's
  // columns.
  template <int kDim>
  static __device__ void accumulate(const float* tile, const float* b,
                                    gpu::F4 (&sum)[4][kDim / 32]) {
    constexpr int kRowStride = RowTile<1, kDim>::kStride;
    KEEP_LOOP
    for (int row = 0; row < kColumns * 8; row += 4) {
      float w[4][4];
      UNROLL
      for (int i = 0; i < 4; ++i) {
        const auto four = gpu::load_vec<gpu::F4>(tile + micro_row(i) * kStride + row);
        w[i][0] = four.x;
        w[i][1] = four.y;
        w[i][2] = four.z;
        w[i][3] = four.w;
      }
      UNROLL
      for (int n = 0; n < kDim / 32; ++n) {
        UNROLL
        for (int e = 0; e < 4; ++e) {
          const auto y = gpu::load_vec<gpu::F4>(b + (row + e) * kRowStride + 4 * micro_column(n));
          UNROLL
          for (int i = 0; i < 4; ++i) {
            sum[i][n].x += w[i][e] * y.x;
            sum[i][n].y += w[i][e] * y.y;
            sum[i][n].z += w[i][e] * y.z;
            sum[i][n].w += w[i][e] * y.w;
          }
        }
      }
    }
  }
};

inline __device__ gpu::F4 scaled(gpu::F4 x, float factor) {
  return {x.x * factor, x.y * factor, x.z * factor, x.w * factor};
}

// ---- 16-bit types on tensor cores ---------------------------------------------------------------

inline constexpr int kFragmentWarps = 4;
inline constexpr int kFragmentThreads = kFragmentWarps * gpu::kWarp;

// A tile of rows of kDim 16-bit elements in shared memory. Chunks of 16 bytes are permuted within
// each row so that the same chunk of eight neighbouring rows lies on all 32 banks, as ldmatrix
// reads it: over 128 bytes by the row number, in what is left of a row (64 bytes, which start in
// the middle of the banks for odd rows) by half of it.
template <class T, int kDim>
struct FragmentTile {
  static constexpr int kChunks = kDim / 8;

  static __device__ T* chunk(T* tile, int row, int c) {
    const int flip = c < kDim / 64 * 8 ? row & 7 : row >> 1 & 3;
    return tile + (row * kChunks + (c ^ flip)) * 8;
  }

  // Copies rows [begin, begin + kRows) of one head; zeros from row `rows` and column head_dim on.
  // Without kAsync (before sm_80) the copy is done when the threads have passed a barrier, with it
  // when they have waited for it before.
  template <bool kAsync, int kRows>
  static __device__ void load(T* tile, const T* head, const AttentionProblem& p, int begin,
                              int rows) {
    static_assert(kRows * kChunks % kFragmentThreads == 0);
    UNROLL
    for (int n = 0; n < kRows * kChunks; n += kFragmentThreads) {
      const int i = n + static_cast<int>(threadIdx.x);
      const int row = i / kChunks;
      const int c = i % kChunks;
      const bool valid = begin + row < rows && 8 * c < p.head_dim;
      const T* from = valid ? head + (begin + row) * p.stride() + 8 * c : head;
      T* to = chunk(tile, row, c);
      if constexpr (kAsync) {
        gpu::cp_async16(to, from, valid);
      } else {
        gpu::store_vec(to, valid ? gpu::load_vec<gpu::U4>(from) : gpu::U4{0, 0, 0, 0});
      }
    }
  }

  // 16 rows x 16 columns as the first operand of a product.
  static __device__ void first(uint32_t (&r)[4], T* tile, int row, int c) {
    gpu::ldmatrix_x4(r, chunk(tile, row + (gpu::lane() & 15), c + (gpu::lane() >> 4)));
  }
  // 16 rows x 16 columns as second operand of a product over columns (rows are the result's
  // columns): registers 0, 1 for the first eight rows, 2, 3 for the others.
  static __device__ void over_columns(uint32_t (&r)[4], T* tile, int row, int c) {
    const int lane = gpu::lane();
    gpu::ldmatrix_x4(r, chunk(tile, row + (lane & 7) + (lane >> 4) * 8, c + (lane >> 3 & 1)));
  }
  // The same for a product over rows: registers 0, 1 for the first eight columns.
  static __device__ void over_rows(uint32_t (&r)[4], T* tile, int row, int c) {
    gpu::ldmatrix_x4_trans(r, chunk(tile, row + (gpu::lane() & 15), c + (gpu::lane() >> 4)));
  }
  // Two columns of a row.
  static __device__ uint32_t* pair(T* tile, int row, int column) {
    return reinterpret_cast<uint32_t*>(chunk(tile, row, column / 8) + column % 8);
  }
};

// d0, d1 += a b for two neighbouring blocks of eight result columns. kWide: one instruction of
// depth 16 (sm_80 on), else two of depth 8, whose operands are the halves of the same registers.
template <class T, bool kWide>
__device__ void multiply_pair(float (&d0)[4], float (&d1)[4], const uint32_t (&a)[4],
                              const uint32_t (&b)[4]) {
  if constexpr (kWide) {
    const uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
    gpu::mma_m16n8k16<T>(d0, a, b0);
    gpu::mma_m16n8k16<T>(d1, a, b1);
  } else {
    UNROLL
    for (int half = 0; half < 2; ++half) {
      const uint32_t x[2] = {a[2 * half], a[2 * half + 1]};
      const uint32_t b0[1] = {b[half]}, b1[1] = {b[2 + half]};
      gpu::mma_m16n8k8(d0, x, b0);
      gpu::mma_m16n8k8(d1, x, b1);
    }
  }
}

// Two neighbouring blocks of eight columns of a result as the first operand of the next product.
template <class T>
__device__ void as_first_operand(uint32_t (&a)[4], const float (&left)[4],
                                 const float (&right)[4]) {
  a[0] = gpu::pack2<T>(left[0], left[1]);
  a[1] = gpu::pack2<T>(left[2], left[3]);
  a[2] = gpu::pack2<T>(right[0], right[1]);
  a[3] = gpu::pack2<T>(right[2], right[3]);
}

// Writes 16 rows of results times `factor` to one head, through the 16 rows of a tile that only
// this warp uses: rows [begin + row, ...) that are below `rows`, 16 bytes at a time.
template <class T, int kDim>
__device__ void store_fragments(T* tile, int row, const float (&d)[kDim / 8][4],
                                const float (&factor)[2], T* head, const AttentionProblem& p,
                                int begin, int rows) {
  using Tile = FragmentTile<T, kDim>;
  const int g = gpu::lane() / 4, t = gpu::lane() % 4;
  gpu::sync_warp();  // nobody still reads what the tile held
  UNROLL
  for (int n = 0; n < kDim / 8; ++n) {
    UNROLL
    for (int half = 0; half < 2; ++half)
      *Tile::pair(tile, row + g + 8 * half, 8 * n + 2 * t) =
          gpu::pack2<T>(d[n][2 * half] * factor[half], d[n][2 * half + 1] * factor[half]);
  }
  gpu::sync_warp();
  for (int i = gpu::lane(); i < 16 * Tile::kChunks; i += gpu::kWarp) {
    const int r = row + i / Tile::kChunks;
    const int c = i % Tile::kChunks;
    if (begin + r < rows && 8 * c < p.head_dim)
      gpu::store_vec(head + (begin + r) * p.stride() + 8 * c,
                     gpu::load_vec<gpu::U4>(Tile::chunk(tile, r, c)));
  }
}

}  // namespace scgraft::cuda
