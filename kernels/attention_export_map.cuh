// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "kernels/attention_device.cuh"
#include "kernels/attention_export.cuh"
#include "kernels/attention_export.h"
#include "kernels/attention_launch.cuh"
#include "kernels/attention_mask.cuh"
#include "kernels/rows.cuh"

// Kernels of attention_map(): weights summed over cells of equal genes.
namespace scgraft::cuda {

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

// The mask over a tile of kQueries x kKeys of a map, cell by cell. It is the same for all heads, so
// that their sum is what is masked: whatever the pairs summed that it hides, it is not used.
template <int kQueries, int kKeys>
struct MapMask {
  const AttentionProblem& p;
  const MapBlock& b;
  const MapSize& size;

  // What attention_mask.cuh asks about.
  __device__ AttentionBlock keys_of(int64_t cell) const {
    AttentionBlock c{};
    c.keys = size.keys;
    c.known = known_keys(p, static_cast<uint32_t>(cell), size.keys);
    c.first_word = static_cast<int32_t>(cell * size.keys / 64 + cell);
    return c;
  }
  // The first cell from `cell` on in which some query of the tile may see some key of it.
  __device__ int64_t next_cell(int64_t cell) const {
    if (!p.masked) return cell;
    for (; cell < p.keys.cells; ++cell) {
      const AttentionBlock c = keys_of(cell);
      if (may_see(p, c, b.key, kKeys, b.query, kQueries) &&
          (key_bits(p, c, b.key) & bits_below(kKeys)) != 0)
        break;
    }
    return cell;
  }
  // Bit l: whether the query sees key b.key + l, for those that are there.
  __device__ uint64_t seen(int64_t cell, int query) const {
    if (!p.masked) return ~uint64_t{0};
    return keys_seen(p, keys_of(cell), b.key, query);
  }
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
__global__ void __launch_bounds__(kTileThreads, 4)
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
  const MapMask<kTileRows, kTileColumns> mask{p, b, size};
  for (int64_t cell = mask.next_cell(0); cell < p.keys.cells; cell = mask.next_cell(cell + 1)) {
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
      const uint64_t seen = mask.seen(cell, b.query + micro_row(i));
      UNROLL
      for (int j = 0; j < kColumns; ++j)
        total[i][j] += (seen >> micro_column(j) & 1) != 0 ? sum[i][j] : 0.0f;
    }
  }
  each([&](int i, int j, float* at) { *at = total[i][j]; });
}

inline constexpr int kMapTile = 64;

template <class T, int kDim>
struct MapFragmentShared {
  T *q, *k;  // two tiles each
  SCGRAFT_HD explicit MapFragmentShared(gpu::SharedCarver& carve)
      : q(carve.take<T>(2 * kMapTile * kDim, 128)), k(carve.take<T>(2 * kMapTile * kDim, 128)) {}
};

// The same on tensor cores; the tiles of the next head load while these are used. Bound by reads
// from L2: 64 x 64 products need two tiles of 64 rows.
template <class T, int kDim, bool kSm80>
__global__ void __launch_bounds__(kFragmentThreads, kDim <= 32 && kSm80 ? 3 : 2)
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
  const MapMask<kMapTile, kMapTile> mask{p, b, size};
  int64_t cell = mask.next_cell(0);
  if (cell < p.keys.cells) load(cell, 0, 0);
  int stage = 0;
  for (int64_t next; cell < p.keys.cells; cell = next) {
    next = mask.next_cell(cell + 1);
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
      if (!last || next < p.keys.cells) load(last ? next : cell, last ? 0 : head + 1, stage ^ 1);
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
    const uint64_t seen[2] = {mask.seen(cell, b.query + first_row + g),
                              mask.seen(cell, b.query + first_row + g + 8)};
    each([&](int n, int e, float* at) {
      if ((seen[e / 2] >> (8 * n + 2 * t + e % 2) & 1) != 0) *at += sum[n][e];
    });
  }
}

}  // namespace scgraft::cuda
