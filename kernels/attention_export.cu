// SPDX-License-Identifier: Apache-2.0
#include <bit>
#include <limits>

#include "kernels/attention_device.cuh"
#include "kernels/attention_export.h"
#include "kernels/attention_launch.cuh"
#include "kernels/require_tensor.h"
#include "kernels/rows.cuh"
#include "runtime/launch.cuh"

namespace scgraft::cuda {
namespace {

// p_ij = 2^(product * scale_log2 + shift), where shift = -L_i * log2(e).
__device__ __forceinline__ float weight_of(float product, float scale_log2, float shift) {
  return gpu::exp2_fast(fmaf(product, scale_log2, shift));
}
__device__ __forceinline__ float shift_of(const AttentionProblem& p, const float* lse,
                                          int64_t query_row, int64_t head) {
  return -kLog2E * lse[query_row * p.heads + head];
}

// ---- some queries -------------------------------------------------------------------------------

constexpr int kKeysPerWarp = 32;
constexpr int kListedKeys = kRowWarps * kKeysPerWarp;  // of one block

// A warp owns 32 keys of one (cell, head) and walks the queries asked for; eight lanes share a
// product, each with every eighth piece of eight elements of both rows. Memory: reads the keys once
// and writes p once, which bounds it; the keys come from the first-level cache from the second
// query on.
//   rows [cells, n] or null: query 0
template <class T>
__global__ void __launch_bounds__(kRowThreads)
    attention_of_queries_kernel(AttentionProblem p, const T* q, const T* k, const float* lse,
                                const int32_t* rows, int n, float* out) {
  constexpr int kPieces = kLargestHeadDim / (8 * kPiece);
  const AttentionBlock b = attention_block(p, kListedKeys);
  const int begin = b.begin + gpu::warp() * kKeysPerWarp;
  if (begin >= b.keys) return;
  const int64_t cell = blockIdx.x / static_cast<uint32_t>(p.tiles) / p.heads;
  const int part = gpu::lane() % 8;
  const bool vectors = p.aligned && p.head_dim % kPiece == 0;
  const auto load = [&](const T* row, float(&v)[kPieces][kPiece]) {
    UNROLL
    for (int i = 0; i < kPieces; ++i) {
      const int first = (8 * i + part) * kPiece;
      if (vectors)
        load_piece<true>(row, first, p.head_dim, v[i]);
      else
        load_piece<false>(row, first, p.head_dim, v[i]);
    }
  };
  const T* keys = k + b.first_key * p.stride() + b.head * p.head_dim;
  const float scale_log2 = p.scale * kLog2E;
  const int mine = begin + part * 4 + gpu::lane() / 8;  // the key whose weight this lane writes
  KEEP_LOOP
  for (int r = 0; r < n; ++r) {
    const int query = rows == nullptr ? 0 : rows[cell * n + r];
    float weight = 0;
    if (0 <= query && query < b.queries) {
      float x[kPieces][kPiece];
      load(q + (b.first_query + query) * p.stride() + b.head * p.head_dim, x);
      const float shift = shift_of(p, lse, b.first_query + query, b.head);
      KEEP_LOOP
      for (int step = 0; step < kKeysPerWarp / 4; ++step) {
        const int key = begin + step * 4 + gpu::lane() / 8;
        float sum = 0;
        if (key < b.keys) {
          float y[kPieces][kPiece];
          load(keys + key * p.stride(), y);
          UNROLL
          for (int i = 0; i < kPieces; ++i) {
            UNROLL
            for (int e = 0; e < kPiece; ++e) sum += x[i][e] * y[i][e];
          }
        }
        UNROLL
        for (int mask = 4; mask > 0; mask /= 2) sum += gpu::shuffle_xor(sum, mask);
        if (part == step) weight = weight_of(sum, scale_log2, shift);
      }
    }
    if (mine < b.keys) out[(r * p.heads + b.head) * p.keys.tokens + b.first_key + mine] = weight;
  }
}

// ---- what keys receive --------------------------------------------------------------------------

// Weights of queries as an argument of a kernel.
struct QueryWeights {
  const float* weight;  // null: 1 / queries of the cell
  bool per_head;
  __device__ float operator()(const AttentionProblem& p, const AttentionBlock& b, int i) const {
    if (weight == nullptr) return 1.0f / static_cast<float>(b.queries);
    const int64_t row = b.first_query + i;
    return weight[per_head ? row * p.heads + b.head : row];
  }
};

// What a tile of kQueries queries brings beside its rows: shift_of() and the weight; zeros behind
// the end, so that rows of zeros add nothing.
template <int kQueries>
struct QueryScalars {
  float* shift;
  float* weight;
  __device__ void load(const AttentionProblem& p, const AttentionBlock& b, const float* lse,
                       const QueryWeights& weights, int first) const {
    const int lane = static_cast<int>(threadIdx.x);
    if (lane >= kQueries) return;
    const int i = first + lane;
    shift[lane] = i < b.queries ? shift_of(p, lse, b.first_query + i, b.head) : 0.0f;
    weight[lane] = i < b.queries ? weights(p, b, i) : 0.0f;
  }
};

__device__ __forceinline__ void store_received(const AttentionProblem& p, const AttentionBlock& b,
                                               int key, float sum, float* out) {
  if (key < b.keys) out[b.head * p.keys.tokens + b.first_key + key] = sum;
}

constexpr int kTileRows = 64;  // of the tile that a block of f32 cores owns
constexpr int kTileColumns = 32;
constexpr int kTileThreads = 2 * kTileRows;

template <int kDim>
struct ReceivedRowsShared {
  float *k, *q, *shift, *weight;
  SCGRAFT_HD explicit ReceivedRowsShared(gpu::SharedCarver& carve)
      : k(carve.take<float>(RowTile<kTileRows, kDim>::kSize)),
        q(carve.take<float>(RowTile<kTileColumns, kDim>::kSize)),
        shift(carve.take<float>(kTileColumns)),
        weight(carve.take<float>(kTileColumns)) {}
};

// A block owns kTileRows keys of one (cell, head) and walks the queries in tiles, in order. Reads k
// once and q once per block, mostly from L2; bound by f32 multiply-adds.
template <class T, int kDim>
__global__ void __launch_bounds__(kTileThreads, 2)
    attention_received_rows_kernel(AttentionProblem p, const T* q, const T* k, const float* lse,
                                   QueryWeights weights, float* out) {
  constexpr int kColumns = kTileColumns / 8;
  const AttentionBlock b = attention_block(p, kTileRows);
  if (b.begin >= b.keys) return;
  gpu::SharedCarver carve(gpu::shared_memory());
  const ReceivedRowsShared<kDim> tiles(carve);
  const QueryScalars<kTileColumns> scalars{tiles.shift, tiles.weight};
  const int64_t queries_at = b.first_query * p.stride() + b.head * p.head_dim;
  const int64_t keys_at = b.first_key * p.stride() + b.head * p.head_dim;
  RowTile<kTileRows, kDim>::load(tiles.k, k + keys_at, p, b.begin, b.keys);
  const float scale_log2 = p.scale * kLog2E;
  float sum[4] = {};
  for (int query = 0; query < b.queries; query += kTileColumns) {
    gpu::sync_block();  // nobody still reads the tile before
    RowTile<kTileColumns, kDim>::load(tiles.q, q + queries_at, p, query, b.queries);
    scalars.load(p, b, lse, weights, query);
    gpu::sync_block();
    float s[4][kColumns];
    micro_product<kDim>(tiles.k, tiles.q, s);
    UNROLL
    for (int j = 0; j < kColumns; ++j) {
      const float shift = tiles.shift[micro_column(j)];
      const float weight = tiles.weight[micro_column(j)];
      UNROLL
      for (int i = 0; i < 4; ++i) sum[i] += weight * weight_of(s[i][j], scale_log2, shift);
    }
  }
  UNROLL
  for (int i = 0; i < 4; ++i) {
    UNROLL
    for (int mask = 4; mask > 0; mask /= 2) sum[i] += gpu::shuffle_xor(sum[i], mask);
    if (gpu::lane() % 8 == 0) store_received(p, b, b.begin + micro_row(i), sum[i], out);
  }
}

// A warp owns 16 * kBands keys: two bands share each fragment of q, which halves the reads of
// shared memory, as long as their fragments fit into registers.
template <int kDim, bool kSm80>
struct ReceivedShape {
  static constexpr int kBands = kSm80 && kDim <= 64 ? 2 : 1;
  static constexpr int kKeys = 16 * kBands * kFragmentWarps;
  static constexpr int kQueries = 64;
};

template <class T, int kDim, bool kSm80>
struct ReceivedFragmentShared {
  using Size = ReceivedShape<kDim, kSm80>;
  T *k, *q;               // q: two tiles
  float *shift, *weight;  // of two tiles
  SCGRAFT_HD explicit ReceivedFragmentShared(gpu::SharedCarver& carve)
      : k(carve.take<T>(Size::kKeys * kDim, 128)),
        q(carve.take<T>(2 * Size::kQueries * kDim, 128)),
        shift(carve.take<float>(2 * Size::kQueries)),
        weight(carve.take<float>(2 * Size::kQueries)) {}
};

// The same on tensor cores: keys are the first operand and stay in registers, the next tile of
// queries loads while this one is used. Bound by the tensor cores, on sm_90 as much by the
// exponentials.
template <class T, int kDim, bool kSm80>
__global__ void __launch_bounds__(kFragmentThreads, 2)
    attention_received_fragments_kernel(AttentionProblem p, const T* q, const T* k,
                                        const float* lse, QueryWeights weights, float* out) {
  using Size = ReceivedShape<kDim, kSm80>;
  using Tile = FragmentTile<T, kDim>;
  constexpr int kBands = Size::kBands, kQueries = Size::kQueries;
  const AttentionBlock b = attention_block(p, Size::kKeys);
  if (b.begin >= b.keys) return;
  gpu::SharedCarver carve(gpu::shared_memory());
  const ReceivedFragmentShared<T, kDim, kSm80> tiles(carve);
  const int64_t queries_at = b.first_query * p.stride() + b.head * p.head_dim;
  const int64_t keys_at = b.first_key * p.stride() + b.head * p.head_dim;
  const auto load_queries = [&](int query) {
    const int stage = query / kQueries % 2 * kQueries;
    Tile::template load<kSm80, kQueries>(tiles.q + stage * kDim, q + queries_at, p, query,
                                         b.queries);
    if constexpr (kSm80) gpu::cp_async_commit();
    const QueryScalars<kQueries> scalars{tiles.shift + stage, tiles.weight + stage};
    scalars.load(p, b, lse, weights, query);
  };
  if (b.queries > 0) {
    Tile::template load<kSm80, Size::kKeys>(tiles.k, k + keys_at, p, b.begin, b.keys);
    load_queries(0);
  }

  const int lane = gpu::lane(), g = lane / 4, t = lane % 4;
  const int first_row = gpu::warp() * 16 * kBands;  // of this warp, in the tile
  const float scale_log2 = p.scale * kLog2E;
  uint32_t key[kBands][kDim / 16][4];
  float sum[kBands][2] = {};  // rows g and g + 8 of a band
  for (int query = 0; query < b.queries; query += kQueries) {
    if constexpr (kSm80) gpu::cp_async_wait<0>();
    gpu::sync_block();  // this tile is there, and nobody still reads the one before it
    if (query + kQueries < b.queries) load_queries(query + kQueries);
    const int stage = query / kQueries % 2 * kQueries;
    if (query == 0) {
      UNROLL
      for (int band = 0; band < kBands; ++band) {
        UNROLL
        for (int c = 0; c < kDim / 16; ++c)
          Tile::first(key[band][c], tiles.k, first_row + 16 * band, 2 * c);
      }
    }
    UNROLL
    for (int n = 0; n < kQueries / 16; ++n) {
      float s[kBands][2][4] = {};
      UNROLL
      for (int c = 0; c < kDim / 16; ++c) {
        uint32_t queries[4];
        Tile::over_columns(queries, tiles.q + stage * kDim, 16 * n, 2 * c);
        UNROLL
        for (int band = 0; band < kBands; ++band)
          multiply_pair<T, kSm80>(s[band][0], s[band][1], key[band][c], queries);
      }
      UNROLL
      for (int e = 0; e < 4; ++e) {
        const int column = stage + 16 * n + 8 * (e / 2) + 2 * t + e % 2;
        const float shift = tiles.shift[column], weight = tiles.weight[column];
        UNROLL
        for (int band = 0; band < kBands; ++band) {
          UNROLL
          for (int half = 0; half < 2; ++half)
            sum[band][half] +=
                weight * weight_of(s[band][e / 2][2 * half + e % 2], scale_log2, shift);
        }
      }
    }
  }
  UNROLL
  for (int band = 0; band < kBands; ++band) {
    UNROLL
    for (int half = 0; half < 2; ++half) {
      float total = sum[band][half];
      total += gpu::shuffle_xor(total, 1);
      total += gpu::shuffle_xor(total, 2);
      if (t == 0) store_received(p, b, b.begin + first_row + 16 * band + g + 8 * half, total, out);
    }
  }
}

// ---- the map ------------------------------------------------------------------------------------

// A block of a map: cells are of equal length, so that their rows need no look-up.
struct MapBlock {
  int query, key;  // where its tile begins
  __device__ MapBlock(const AttentionProblem& p, int rows, int columns)
      : query(static_cast<int>(blockIdx.x / static_cast<uint32_t>(p.tiles)) * rows),
        key(static_cast<int>(blockIdx.x % static_cast<uint32_t>(p.tiles)) * columns) {}
};

struct MapSize {
  int queries, keys;  // of a cell
};

template <int kDim>
struct MapRowsShared {
  float *q, *k;
  SCGRAFT_HD explicit MapRowsShared(gpu::SharedCarver& carve)
      : q(carve.take<float>(RowTile<kTileRows, kDim>::kSize)),
        k(carve.take<float>(RowTile<kTileColumns, kDim>::kSize)) {}
};

// A block owns a tile of the map and walks cells and heads in order: the sum over the heads of a
// cell, then the cells one after another on what the map holds. Reads a tile of q and one of k per
// cell and head, mostly from L2; bound by f32 multiply-adds.
template <class T, int kDim>
__global__ void __launch_bounds__(kTileThreads, 2)
    attention_map_rows_kernel(AttentionProblem p, MapSize size, const T* q, const T* k,
                              const float* lse, float* map) {
  constexpr int kColumns = kTileColumns / 8;
  const MapBlock b(p, kTileRows, kTileColumns);
  gpu::SharedCarver carve(gpu::shared_memory());
  const MapRowsShared<kDim> tiles(carve);
  const float scale_log2 = p.scale * kLog2E;
  const auto each = [&](auto&& use) {
    UNROLL
    for (int i = 0; i < 4; ++i) {
      UNROLL
      for (int j = 0; j < kColumns; ++j) {
        const int64_t query = b.query + micro_row(i), key = b.key + micro_column(j);
        if (query < size.queries && key < size.keys) use(i, j, map + query * size.keys + key);
      }
    }
  };
  float total[4][kColumns] = {};
  each([&](int i, int j, const float* at) { total[i][j] = *at; });
  for (int64_t cell = 0; cell < p.keys.cells; ++cell) {
    float sum[4][kColumns] = {};
    const int64_t first_query = cell * size.queries, first_key = cell * size.keys;
    for (int64_t head = 0; head < p.heads; ++head) {
      gpu::sync_block();  // nobody still reads the tiles before
      RowTile<kTileRows, kDim>::load(tiles.q, q + first_query * p.stride() + head * p.head_dim, p,
                                     b.query, size.queries);
      RowTile<kTileColumns, kDim>::load(tiles.k, k + first_key * p.stride() + head * p.head_dim, p,
                                        b.key, size.keys);
      gpu::sync_block();
      float s[4][kColumns];
      micro_product<kDim>(tiles.q, tiles.k, s);
      UNROLL
      for (int i = 0; i < 4; ++i) {
        const int query = b.query + micro_row(i);
        const float shift =
            query < size.queries ? shift_of(p, lse, first_query + query, head) : 0.0f;
        UNROLL
        for (int j = 0; j < kColumns; ++j) sum[i][j] += weight_of(s[i][j], scale_log2, shift);
      }
    }
    UNROLL
    for (int i = 0; i < 4; ++i) {
      UNROLL
      for (int j = 0; j < kColumns; ++j) total[i][j] += sum[i][j];
    }
  }
  each([&](int i, int j, float* at) { *at = total[i][j]; });
}

constexpr int kMapTile = 64;

template <class T, int kDim>
struct MapFragmentShared {
  T *q, *k;  // two tiles each
  SCGRAFT_HD explicit MapFragmentShared(gpu::SharedCarver& carve)
      : q(carve.take<T>(2 * kMapTile * kDim, 128)), k(carve.take<T>(2 * kMapTile * kDim, 128)) {}
};

// The same on tensor cores; the tiles of the next head load while these are used. Bound by reads
// from L2: 64 x 64 products need two tiles of 64 rows.
template <class T, int kDim, bool kSm80>
__global__ void __launch_bounds__(kFragmentThreads, 2)
    attention_map_fragments_kernel(AttentionProblem p, MapSize size, const T* q, const T* k,
                                   const float* lse, float* map) {
  using Tile = FragmentTile<T, kDim>;
  const MapBlock b(p, kMapTile, kMapTile);
  gpu::SharedCarver carve(gpu::shared_memory());
  const MapFragmentShared<T, kDim> tiles(carve);
  const int lane = gpu::lane(), g = lane / 4, t = lane % 4;
  const int first_row = gpu::warp() * 16;
  const float scale_log2 = p.scale * kLog2E;
  const auto load = [&](int64_t cell, int64_t head, int stage) {
    Tile::template load<kSm80, kMapTile>(tiles.q + stage * kMapTile * kDim,
                                         q + cell * size.queries * p.stride() + head * p.head_dim,
                                         p, b.query, size.queries);
    Tile::template load<kSm80, kMapTile>(tiles.k + stage * kMapTile * kDim,
                                         k + cell * size.keys * p.stride() + head * p.head_dim, p,
                                         b.key, size.keys);
    if constexpr (kSm80) gpu::cp_async_commit();
  };
  const auto each = [&](auto&& use) {
    UNROLL
    for (int n = 0; n < kMapTile / 8; ++n) {
      UNROLL
      for (int e = 0; e < 4; ++e) {
        const int64_t query = b.query + first_row + g + 8 * (e / 2);
        const int64_t key = b.key + 8 * n + 2 * t + e % 2;
        if (query < size.queries && key < size.keys) use(n, e, map + query * size.keys + key);
      }
    }
  };
  load(0, 0, 0);
  int stage = 0;
  for (int64_t cell = 0; cell < p.keys.cells; ++cell) {
    float sum[kMapTile / 8][4] = {};
    for (int64_t head = 0; head < p.heads; ++head, stage ^= 1) {
      float shift[2];
      UNROLL
      for (int half = 0; half < 2; ++half) {
        const int query = b.query + first_row + g + 8 * half;
        shift[half] =
            query < size.queries ? shift_of(p, lse, cell * size.queries + query, head) : 0.0f;
      }
      if constexpr (kSm80) gpu::cp_async_wait<0>();
      gpu::sync_block();  // these tiles are there, and nobody still reads the ones before them
      const bool last = head + 1 == p.heads;
      if (!last || cell + 1 < p.keys.cells)
        load(last ? cell + 1 : cell, last ? 0 : head + 1, stage ^ 1);
      uint32_t query[kDim / 16][4];
      UNROLL
      for (int c = 0; c < kDim / 16; ++c)
        Tile::first(query[c], tiles.q + stage * kMapTile * kDim, first_row, 2 * c);
      UNROLL
      for (int n = 0; n < kMapTile / 16; ++n) {
        float s[2][4] = {};
        UNROLL
        for (int c = 0; c < kDim / 16; ++c) {
          uint32_t keys[4];
          Tile::over_columns(keys, tiles.k + stage * kMapTile * kDim, 16 * n, 2 * c);
          multiply_pair<T, kSm80>(s[0], s[1], query[c], keys);
        }
        UNROLL
        for (int e = 0; e < 8; ++e)
          sum[2 * n + e / 4][e % 4] += weight_of(s[e / 4][e % 4], scale_log2, shift[e % 4 / 2]);
      }
    }
    // Kept in registers for all cells, the map would spill on 9.0.
    each([&](int n, int e, float* at) { *at += sum[n][e]; });
  }
}

// ---- the largest weights ------------------------------------------------------------------------

constexpr int kWarpQueries = 16;

// Position of the lowest bit that is set: the exponent of its value as a float.
__device__ __forceinline__ int lowest_bit(uint32_t bits) {
  const auto value = static_cast<float>(bits & (~bits + 1));
  return static_cast<int>(std::bit_cast<uint32_t>(value) >> 23) - 127;
}

// The best keys so far of the 16 queries of a warp: lane l holds the l-th best of each.
struct TopKeys {
  float score[kWarpQueries];
  int key[kWarpQueries];

  __device__ TopKeys() {
    UNROLL
    for (int r = 0; r < kWarpQueries; ++r) {
      score[r] = -std::numeric_limits<float>::infinity();
      key[r] = -1;
    }
  }

  // Takes the scores of 16 queries and the keys [first, first + kKeys), of which the cell has those
  // below `end`, from a tile of this warp; queries from `queries` on do not exist. Keys come in
  // order, so that an equal score is not better and goes behind.
  template <int kKeys>
  __device__ void take(const float* tile, int stride, int first, int end, int queries, int n) {
    const int lane = gpu::lane();
    UNROLL
    for (int r = 0; r < kWarpQueries; ++r) {
      if (r >= queries) break;
      KEEP_LOOP
      for (int part = 0; part < kKeys; part += gpu::kWarp) {
        const int mine = first + part + lane;
        const float s =
            mine < end ? tile[r * stride + part + lane] : -std::numeric_limits<float>::infinity();
        uint32_t better = gpu::ballot(s > gpu::shuffle(score[r], n - 1));
        KEEP_LOOP
        for (; better != 0; better &= better - 1) {
          const int from = lowest_bit(better);
          const float x = gpu::shuffle(s, from);
          const float above = gpu::shuffle(score[r], lane > 0 ? lane - 1 : 0);
          const int key_above = gpu::shuffle(key[r], lane > 0 ? lane - 1 : 0);
          // Lists are sorted: those that x beats move down by one lane.
          if (x > score[r]) {
            const bool here = lane == 0 || above >= x;
            score[r] = here ? x : above;
            key[r] = here ? first + part + from : key_above;
          }
        }
      }
    }
  }

  // Writes the n best of the queries `begin`... of a head.
  __device__ void store(const AttentionProblem& p, const AttentionBlock& b, const float* lse,
                        int begin, int n, float* weights, int32_t* keys) const {
    const int lane = gpu::lane();
    UNROLL
    for (int r = 0; r < kWarpQueries; ++r) {
      if (begin + r >= b.queries) break;
      const int64_t row = b.first_query + begin + r;
      const int64_t at = (row * p.heads + b.head) * n + lane;
      if (lane >= n) continue;
      weights[at] =
          b.keys == 0 ? 0.0f : weight_of(score[r], p.scale * kLog2E, shift_of(p, lse, row, b.head));
      keys[at] = key[r];
    }
  }
};

template <int kDim>
struct TopRowsShared {
  float *q, *k, *scores;
  SCGRAFT_HD explicit TopRowsShared(gpu::SharedCarver& carve)
      : q(carve.take<float>(RowTile<kTileRows, kDim>::kSize)),
        k(carve.take<float>(RowTile<kTileColumns, kDim>::kSize)),
        scores(carve.take<float>(kTileRows * WeightTile<kTileColumns / 8>::kStride)) {}
};

// A block owns kTileRows queries of one (cell, head) and walks the keys in tiles. Keys compete by
// their scores; weights are formed of the winners only. Bound by f32 multiply-adds.
template <class T, int kDim>
__global__ void __launch_bounds__(kTileThreads, 2)
    attention_top_rows_kernel(AttentionProblem p, const T* q, const T* k, const float* lse, int n,
                              float* weights, int32_t* keys) {
  constexpr int kColumns = kTileColumns / 8;
  using Scores = WeightTile<kColumns>;
  const AttentionBlock b = attention_block(p, kTileRows);
  if (b.begin >= b.queries) return;
  gpu::SharedCarver carve(gpu::shared_memory());
  const TopRowsShared<kDim> tiles(carve);
  const int64_t queries_at = b.first_query * p.stride() + b.head * p.head_dim;
  const int64_t keys_at = b.first_key * p.stride() + b.head * p.head_dim;
  const int begin = b.begin + gpu::warp() * kWarpQueries;
  RowTile<kTileRows, kDim>::load(tiles.q, q + queries_at, p, b.begin, b.queries);
  TopKeys top;
  for (int key = 0; key < b.keys; key += kTileColumns) {
    gpu::sync_block();  // nobody still reads the tile before
    RowTile<kTileColumns, kDim>::load(tiles.k, k + keys_at, p, key, b.keys);
    gpu::sync_block();
    float s[4][kColumns];
    micro_product<kDim>(tiles.q, tiles.k, s);
    Scores::put(tiles.scores, s);
    top.take<kTileColumns>(tiles.scores + gpu::warp() * kWarpQueries * Scores::kStride,
                           Scores::kStride, key, b.keys, b.queries - begin, n);
  }
  top.store(p, b, lse, begin, n, weights, keys);
}

constexpr int kTopTile = 64;
constexpr int kScoreStride = kTopTile + 8;  // four rows on different banks

template <class T, int kDim>
struct TopFragmentShared {
  T *q, *k;  // k: two tiles
  float* scores;
  SCGRAFT_HD explicit TopFragmentShared(gpu::SharedCarver& carve)
      : q(carve.take<T>(kTopTile * kDim, 128)),
        k(carve.take<T>(2 * kTopTile * kDim, 128)),
        scores(carve.take<float>(kTopTile * kScoreStride)) {}
};

// The same on tensor cores; the next tile of keys loads while this one is used. Bound by what a
// warp does per score outside of them: a store, a load and a comparison.
template <class T, int kDim, bool kSm80>
__global__ void __launch_bounds__(kFragmentThreads, 2)
    attention_top_fragments_kernel(AttentionProblem p, const T* q, const T* k, const float* lse,
                                   int n, float* weights, int32_t* keys) {
  using Tile = FragmentTile<T, kDim>;
  const AttentionBlock b = attention_block(p, kTopTile);
  if (b.begin >= b.queries) return;
  gpu::SharedCarver carve(gpu::shared_memory());
  const TopFragmentShared<T, kDim> tiles(carve);
  const int64_t queries_at = b.first_query * p.stride() + b.head * p.head_dim;
  const int64_t keys_at = b.first_key * p.stride() + b.head * p.head_dim;
  const auto load_keys = [&](int key) {
    Tile::template load<kSm80, kTopTile>(tiles.k + key / kTopTile % 2 * kTopTile * kDim,
                                         k + keys_at, p, key, b.keys);
    if constexpr (kSm80) gpu::cp_async_commit();
  };
  if (b.keys > 0) {
    Tile::template load<kSm80, kTopTile>(tiles.q, q + queries_at, p, b.begin, b.queries);
    load_keys(0);
  }

  const int lane = gpu::lane(), g = lane / 4, t = lane % 4;
  const int first_row = gpu::warp() * kWarpQueries;
  float* scores = tiles.scores + first_row * kScoreStride;
  TopKeys top;
  for (int key = 0; key < b.keys; key += kTopTile) {
    if constexpr (kSm80) gpu::cp_async_wait<0>();
    gpu::sync_block();  // this tile is there, and nobody still reads the one before it
    if (key + kTopTile < b.keys) load_keys(key + kTopTile);
    T* k_tile = tiles.k + key / kTopTile % 2 * kTopTile * kDim;
    uint32_t query[kDim / 16][4];
    UNROLL
    for (int c = 0; c < kDim / 16; ++c) Tile::first(query[c], tiles.q, first_row, 2 * c);
    UNROLL
    for (int m = 0; m < kTopTile / 16; ++m) {
      float s[2][4] = {};
      UNROLL
      for (int c = 0; c < kDim / 16; ++c) {
        uint32_t columns[4];
        Tile::over_columns(columns, k_tile, 16 * m, 2 * c);
        multiply_pair<T, kSm80>(s[0], s[1], query[c], columns);
      }
      UNROLL
      for (int e = 0; e < 4; ++e)
        gpu::store_vec(scores + (g + 8 * (e % 2)) * kScoreStride + 16 * m + 8 * (e / 2) + 2 * t,
                       gpu::U2{std::bit_cast<uint32_t>(s[e / 2][2 * (e % 2)]),
                               std::bit_cast<uint32_t>(s[e / 2][2 * (e % 2) + 1])});
    }
    gpu::sync_warp();
    top.take<kTopTile>(scores, kScoreStride, key, b.keys, b.queries - b.begin - first_row, n);
    gpu::sync_warp();  // nobody still reads the scores
  }
  top.store(p, b, lse, b.begin + first_row, n, weights, keys);
}

// ---- launches -----------------------------------------------------------------------------------

// What the kernels of one call have in common.
template <class T>
struct Call {
  AttentionProblem p;
  AttentionSizes sizes;
  const T *q, *k;
  const float* lse;

  Call(const char* op, Context& ctx, const AttentionPass& pass)
      : p(attention_problem(op, ctx, pass.queries, pass.keys, pass.heads,
                            pass.q.dim(1) / pass.heads, Dropout{}, ctx.random(), {}, {},
                            {pass.q, pass.k})),
        sizes(pass.queries, pass.keys, pass.heads),
        q(pass.q.as<T>()),
        k(pass.k.as<T>()),
        lse(pass.lse.as<float>()) {}
};

}  // namespace

void attention_of_queries(Context& ctx, const AttentionPass& pass, ConstTensorView rows,
                          TensorView p) {
  constexpr const char* kOp = "attention_of_queries";
  visit_storage(pass.q.dtype(), [&]<class T>(Type<T>) {
    Call<T> call(kOp, ctx, pass);
    call.p.tiles = call.sizes.key_tiles(kListedKeys);
    launch(ctx, kOp, attention_of_queries_kernel<T>, call.sizes.grid(call.p), kRowThreads, 0,
           call.p, call.q, call.k, call.lse, data_or_null<int32_t>(rows),
           static_cast<int>(p.dim(0)), p.as<float>());
  });
}

void attention_received(Context& ctx, const AttentionPass& pass, ConstTensorView weight,
                        TensorView received) {
  constexpr const char* kOp = "attention_received";
  const QueryWeights weights{data_or_null<float>(weight), weight.rank() == 2};
  visit_storage(pass.q.dtype(), [&]<class T>(Type<T>) {
    Call<T> call(kOp, ctx, pass);
    const auto run = [&](auto kernel, int keys, int threads, int64_t shared) {
      call.p.tiles = call.sizes.key_tiles(keys);
      launch(ctx, kOp, kernel, call.sizes.grid(call.p), threads, shared, call.p, call.q, call.k,
             call.lse, weights, received.as<float>());
    };
    visit_attention_kernel<T>(
        ctx, call.p,
        [&]<int kDim, bool kSm80>(Fragments<kDim, kSm80>) {
          run(attention_received_fragments_kernel<T, kDim, kSm80>,
              ReceivedShape<kDim, kSm80>::kKeys, kFragmentThreads,
              shared_bytes<ReceivedFragmentShared<T, kDim, kSm80>>());
        },
        [&]<int kDim>(Rows<kDim>) {
          run(attention_received_rows_kernel<T, kDim>, kTileRows, kTileThreads,
              shared_bytes<ReceivedRowsShared<kDim>>());
        });
  });
}

void attention_map(Context& ctx, const AttentionPass& pass, TensorView map) {
  constexpr const char* kOp = "attention_map";
  const MapSize size{static_cast<int>(map.dim(0)), static_cast<int>(map.dim(1))};
  visit_storage(pass.q.dtype(), [&]<class T>(Type<T>) {
    Call<T> call(kOp, ctx, pass);
    const auto run = [&](auto kernel, int rows, int columns, int threads, int64_t shared) {
      call.p.tiles = call.sizes.key_tiles(columns);
      launch(ctx, kOp, kernel, {.x = int64_t{call.sizes.query_tiles(rows)} * call.p.tiles}, threads,
             shared, call.p, size, call.q, call.k, call.lse, map.as<float>());
    };
    visit_attention_kernel<T>(
        ctx, call.p,
        [&]<int kDim, bool kSm80>(Fragments<kDim, kSm80>) {
          run(attention_map_fragments_kernel<T, kDim, kSm80>, kMapTile, kMapTile, kFragmentThreads,
              shared_bytes<MapFragmentShared<T, kDim>>());
        },
        [&]<int kDim>(Rows<kDim>) {
          run(attention_map_rows_kernel<T, kDim>, kTileRows, kTileColumns, kTileThreads,
              shared_bytes<MapRowsShared<kDim>>());
        });
  });
}

void attention_top_keys(Context& ctx, const AttentionPass& pass, TensorView p, TensorView keys) {
  constexpr const char* kOp = "attention_top_keys";
  visit_storage(pass.q.dtype(), [&]<class T>(Type<T>) {
    Call<T> call(kOp, ctx, pass);
    const auto run = [&](auto kernel, int queries, int threads, int64_t shared) {
      call.p.tiles = call.sizes.query_tiles(queries);
      launch(ctx, kOp, kernel, call.sizes.grid(call.p), threads, shared, call.p, call.q, call.k,
             call.lse, static_cast<int>(p.dim(2)), p.as<float>(), keys.as<int32_t>());
    };
    visit_attention_kernel<T>(
        ctx, call.p,
        [&]<int kDim, bool kSm80>(Fragments<kDim, kSm80>) {
          run(attention_top_fragments_kernel<T, kDim, kSm80>, kTopTile, kFragmentThreads,
              shared_bytes<TopFragmentShared<T, kDim>>());
        },
        [&]<int kDim>(Rows<kDim>) {
          run(attention_top_rows_kernel<T, kDim>, kTileRows, kTileThreads,
              shared_bytes<TopRowsShared<kDim>>());
        });
  });
}

}  // namespace scgraft::cuda
