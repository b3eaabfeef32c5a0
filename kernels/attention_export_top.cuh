// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <bit>
#include <limits>

#include "kernels/attention_device.cuh"
#include "kernels/attention_export.cuh"
#include "kernels/attention_export.h"
#include "kernels/attention_launch.cuh"
#include "kernels/attention_mask.cuh"
#include "kernels/rows.cuh"

// Kernels of attention_top_keys(): the keys with the largest weights.
namespace scgraft::cuda {

inline constexpr int kWarpQueries = 16;

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

  // Takes the scores of 16 queries and the keys [first, first + kKeys) from a tile of this warp,
  // -inf where there is no key to be seen; queries from `queries` on do not exist. Keys come in
  // order, so that an equal score is not better and goes behind.
  template <int kKeys>
  __device__ void take(const float* tile, int stride, int first, int queries, int n) {
    const int lane = gpu::lane();
    UNROLL
    for (int r = 0; r < kWarpQueries; ++r) {
      if (r >= queries) break;
      KEEP_LOOP
      for (int part = 0; part < kKeys; part += gpu::kWarp) {
        const float s = tile[r * stride + part + lane];
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
      weights[at] = weight_of(score[r], p.scale * kLog2E, shift_of(p, lse, row, b.head));
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
  const auto next_tile = [&](int key) {
    return next_key_tile<kTileColumns>(p, b, key, b.begin, kTileRows);
  };
  TopKeys top;
  for (int key = next_tile(0); key < b.keys; key = next_tile(key + kTileColumns)) {
    gpu::sync_block();  // nobody still reads the tile before
    RowTile<kTileColumns, kDim>::load(tiles.k, k + keys_at, p, key, b.keys);
    gpu::sync_block();
    float s[4][kColumns];
    micro_product<kDim>(tiles.q, tiles.k, s);
    if (!all_seen(p, b, key, kTileColumns, b.begin)) {
      UNROLL
      for (int i = 0; i < 4; ++i) {
        const uint64_t seen = keys_seen(p, b, key, b.begin + micro_row(i));
        UNROLL
        for (int j = 0; j < kColumns; ++j)
          if ((seen >> micro_column(j) & 1) == 0) s[i][j] = -std::numeric_limits<float>::infinity();
      }
    }
    Scores::put(tiles.scores, s);
    top.take<kTileColumns>(tiles.scores + gpu::warp() * kWarpQueries * Scores::kStride,
                           Scores::kStride, key, b.queries - begin, n);
  }
  top.store(p, b, lse, begin, n, weights, keys);
}

inline constexpr int kTopTile = 64;
inline constexpr int kScoreStride = kTopTile + 8;  // four rows on different banks

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
  const auto load_keys = [&](int key, int stage) {
    Tile::template load<kSm80, kTopTile>(tiles.k + stage * kTopTile * kDim, k + keys_at, p, key,
                                         b.keys);
    if constexpr (kSm80) gpu::cp_async_commit();
  };
  const auto next_tile = [&](int key) {
    return next_key_tile<kTopTile>(p, b, key, b.begin, kTopTile);
  };
  int key = next_tile(0);
  if (key < b.keys) {
    Tile::template load<kSm80, kTopTile>(tiles.q, q + queries_at, p, b.begin, b.queries);
    load_keys(key, 0);
  }

  const int lane = gpu::lane(), g = lane / 4, t = lane % 4;
  const int first_row = gpu::warp() * kWarpQueries;
  float* scores = tiles.scores + first_row * kScoreStride;
  TopKeys top;
  int stage = 0;
  for (int next; key < b.keys; key = next, stage ^= 1) {
    if constexpr (kSm80) gpu::cp_async_wait<0>();
    gpu::sync_block();  // this tile is there, and nobody still reads the one before it
    next = next_tile(key + kTopTile);
    if (next < b.keys) load_keys(next, stage ^ 1);
    T* k_tile = tiles.k + stage * kTopTile * kDim;
    const int row = b.begin + first_row;
    if (!may_see(p, b, key, kTopTile, row, kWarpQueries)) continue;
    const bool whole = all_seen(p, b, key, kTopTile, row);
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
      if (!whole) {
        UNROLL
        for (int half = 0; half < 2; ++half) {
          const uint64_t seen = keys_seen(p, b, key, row + g + 8 * half) >> (16 * m + 2 * t);
          UNROLL
          for (int e = 0; e < 4; ++e)
            if ((seen >> (8 * (e / 2) + e % 2) & 1) == 0)
              s[e / 2][2 * half + e % 2] = -std::numeric_limits<float>::infinity();
        }
      }
      UNROLL
      for (int e = 0; e < 4; ++e)
        gpu::store_vec(scores + (g + 8 * (e % 2)) * kScoreStride + 16 * m + 8 * (e / 2) + 2 * t,
                       gpu::U2{std::bit_cast<uint32_t>(s[e / 2][2 * (e % 2)]),
                               std::bit_cast<uint32_t>(s[e / 2][2 * (e % 2) + 1])});
    }
    gpu::sync_warp();
    top.take<kTopTile>(scores, kScoreStride, key, b.queries - row, n);
    gpu::sync_warp();  // nobody still reads the scores
  }
  top.store(p, b, lse, b.begin + first_row, n, weights, keys);
}

}  // namespace scgraft::cuda
