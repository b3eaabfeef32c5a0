// SPDX-License-Identifier: Apache-2.0
#include <limits>

#include "kernels/attention_device.cuh"
#include "kernels/attention_export.cuh"
#include "kernels/attention_export.h"
#include "kernels/attention_export_map.cuh"
#include "kernels/attention_export_top.cuh"
#include "kernels/attention_launch.cuh"
#include "kernels/attention_mask.cuh"
#include "kernels/require_tensor.h"
#include "kernels/rows.cuh"
#include "runtime/launch.cuh"

namespace scgraft::cuda {
namespace {

// ---- some queries -------------------------------------------------------------------------------

constexpr int kRowsPerWarp = 32;
constexpr int kListedRows = kRowWarps * kRowsPerWarp;  // of one block

// What a lane holds of a row: every eighth piece of eight elements, so that eight lanes share it.
constexpr int kRowPieces = kLargestHeadDim / (8 * kPiece);
template <class T>
__device__ __forceinline__ void load_eighth(const AttentionProblem& p, const T* row,
                                            float (&v)[kRowPieces][kPiece]) {
  const bool vectors = p.aligned && p.head_dim % kPiece == 0;
  UNROLL
  for (int i = 0; i < kRowPieces; ++i) {
    const int first = (8 * i + gpu::lane() % 8) * kPiece;
    if (vectors)
      load_piece<true>(row, first, p.head_dim, v[i]);
    else
      load_piece<false>(row, first, p.head_dim, v[i]);
  }
}

// Of the 32 rows of a warp the one whose product this lane gets.
__device__ __forceinline__ int lane_row() { return gpu::lane() % 8 * 4 + gpu::lane() / 8; }

// Products of x with the rows [begin, begin + 32) of one head, of which there are those below
// `end`: this lane gets that of row begin + lane_row(), 0 when it is not there.
template <class T>
__device__ __forceinline__ float warp_product(const AttentionProblem& p,
                                              const float (&x)[kRowPieces][kPiece], const T* rows,
                                              int begin, int end) {
  float mine = 0;
  KEEP_LOOP
  for (int step = 0; step < kRowsPerWarp / 4; ++step) {
    const int row = begin + step * 4 + gpu::lane() / 8;
    float sum = 0;
    if (row < end) {
      float y[kRowPieces][kPiece];
      load_eighth(p, rows + row * p.stride(), y);
      UNROLL
      for (int i = 0; i < kRowPieces; ++i) {
        UNROLL
        for (int e = 0; e < kPiece; ++e) sum += x[i][e] * y[i][e];
      }
    }
    UNROLL
    for (int mask = 4; mask > 0; mask /= 2) sum += gpu::shuffle_xor(sum, mask);
    if (gpu::lane() % 8 == step) mine = sum;
  }
  return mine;
}

// A warp owns 32 keys of one (cell, head), of the cell or of the prefix, and walks the queries
// asked for. Memory: reads the keys once and writes p once, which bounds it; the keys come from the
// first-level cache from the second query on.
//   rows [cells, n] or null: query 0
template <class T>
__global__ void __launch_bounds__(kRowThreads, 8)
    attention_of_queries_kernel(AttentionProblem p, const T* q, const T* k, const T* prefix_k,
                                const float* lse, const int32_t* rows, int n, float* out) {
  const AttentionBlock b = attention_block(p, kListedRows);
  const bool own = b.begin >= 0;
  const int end = own ? b.keys : p.prefix_rows;
  const int begin = (own ? b.begin : 0) + gpu::warp() * kRowsPerWarp;
  if (begin >= end) return;
  const int64_t cell = blockIdx.x / static_cast<uint32_t>(p.tiles) / p.heads;
  const T* keys = (own ? k + b.first_key * p.stride() : prefix_k) + b.head * p.head_dim;
  const int mine = begin + lane_row();
  const int64_t columns = p.keys.tokens + p.keys.cells * p.prefix_rows;
  const int64_t column = b.first_key + cell * p.prefix_rows + (own ? p.prefix_rows : 0) + mine;
  KEEP_LOOP
  for (int r = 0; r < n; ++r) {
    const int query = rows == nullptr ? 0 : rows[cell * n + r];
    float weight = 0;
    if (0 <= query && query < b.queries) {
      const uint32_t seen = own ? static_cast<uint32_t>(keys_seen(p, b, begin, query)) : ~0u;
      if (seen != 0) {
        float x[kRowPieces][kPiece];
        load_eighth(p, q + (b.first_query + query) * p.stride() + b.head * p.head_dim, x);
        const float product = warp_product(p, x, keys, begin, end);
        if (seen >> lane_row() & 1)
          weight =
              weight_of(product, p.scale * kLog2E, shift_of(p, lse, b.first_query + query, b.head));
      }
    }
    if (mine < end) out[(r * p.heads + b.head) * columns + column] = weight;
  }
}

// A warp owns 32 queries of one (cell, head) and walks the keys of the prefix. Its queries come
// from the first-level cache from the second key on; bound by f32 multiply-adds.
template <class T>
__global__ void __launch_bounds__(kRowThreads, 8)
    attention_prefix_share_kernel(AttentionProblem p, const T* q, const T* prefix_k,
                                  const float* lse, float* share) {
  const AttentionBlock b = attention_block(p, kListedRows);
  const int begin = b.begin + gpu::warp() * kRowsPerWarp;
  if (begin >= b.queries) return;
  const T* queries = q + b.first_query * p.stride() + b.head * p.head_dim;
  const int mine = begin + lane_row();
  const float shift = mine < b.queries ? shift_of(p, lse, b.first_query + mine, b.head) : 0.0f;
  float sum = 0;
  KEEP_LOOP
  for (int key = 0; key < p.prefix_rows; ++key) {
    float x[kRowPieces][kPiece];
    load_eighth(p, prefix_k + key * p.stride() + b.head * p.head_dim, x);
    sum += weight_of(warp_product(p, x, queries, begin, b.queries), p.scale * kLog2E, shift);
  }
  if (mine < b.queries) share[(b.first_query + mine) * p.heads + b.head] = sum;
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

// The first tile of kQueries queries from `query` on in which somebody may see one of the kKeys
// keys of the block; b.queries or more: none.
template <int kKeys, int kQueries>
__device__ int next_query_tile(const AttentionProblem& p, const AttentionBlock& b, int query) {
  uint64_t open = 0;
  for (int key = b.begin; key < b.begin + kKeys && key < b.keys; key += 64)
    open |= key_bits(p, b, key) & bits_below(kKeys);
  if (open == 0) return b.queries;
  while (query < b.queries && !may_see(p, b, b.begin, kKeys, query, kQueries)) query += kQueries;
  return query;
}

__device__ __forceinline__ void store_received(const AttentionProblem& p, const AttentionBlock& b,
                                               int key, float sum, float* out) {
  if (key < b.keys) out[b.head * p.keys.tokens + b.first_key + key] = sum;
}

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
  const OwnKeys<4, 4> keys(p, b, b.begin + micro_row(0));
  const auto next_tile = [&](int query) {
    return next_query_tile<kTileRows, kTileColumns>(p, b, query);
  };
  float sum[4] = {};
  for (int query = next_tile(0); query < b.queries; query = next_tile(query + kTileColumns)) {
    gpu::sync_block();  // nobody still reads the tile before
    RowTile<kTileColumns, kDim>::load(tiles.q, q + queries_at, p, query, b.queries);
    scalars.load(p, b, lse, weights, query);
    gpu::sync_block();
    float s[4][kColumns];
    micro_product<kDim>(tiles.k, tiles.q, s);
    if (!keys.all_seen(p, query)) {
      static_assert(kTileColumns == 32);
      UNROLL
      for (int i = 0; i < 4; ++i) {
        const uint32_t seen = keys.seen_by(p, i, query);
        UNROLL
        for (int j = 0; j < kColumns; ++j)
          if ((seen >> micro_column(j) & 1) == 0) s[i][j] = -std::numeric_limits<float>::infinity();
      }
    }
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
  const auto load_queries = [&](int query, int stage) {
    Tile::template load<kSm80, kQueries>(tiles.q + stage * kDim, q + queries_at, p, query,
                                         b.queries);
    if constexpr (kSm80) gpu::cp_async_commit();
    const QueryScalars<kQueries> scalars{tiles.shift + stage, tiles.weight + stage};
    scalars.load(p, b, lse, weights, query);
  };
  const auto next_tile = [&](int query) {
    return next_query_tile<Size::kKeys, kQueries>(p, b, query);
  };
  int query = next_tile(0);
  if (query < b.queries) {
    Tile::template load<kSm80, Size::kKeys>(tiles.k, k + keys_at, p, b.begin, b.keys);
    load_queries(query, 0);
  }

  const int lane = gpu::lane(), g = lane / 4, t = lane % 4;
  const int first_row = gpu::warp() * 16 * kBands;  // of this warp, in the tile
  const float scale_log2 = p.scale * kLog2E;
  uint32_t key[kBands][kDim / 16][4];
  float sum[kBands][2] = {};                                         // rows g and g + 8 of a band
  const OwnKeys<2 * kBands, 8> keys(p, b, b.begin + first_row + g);  // 2 band + half
  int stage = 0;  // where the rows of this tile begin
  bool first_tile = true;
  for (int next; query < b.queries; query = next, stage ^= kQueries) {
    if constexpr (kSm80) gpu::cp_async_wait<0>();
    gpu::sync_block();  // this tile is there, and nobody still reads the one before it
    next = next_tile(query + kQueries);
    if (next < b.queries) load_queries(next, stage ^ kQueries);
    if (first_tile) {
      first_tile = false;
      UNROLL
      for (int band = 0; band < kBands; ++band) {
        UNROLL
        for (int c = 0; c < kDim / 16; ++c)
          Tile::first(key[band][c], tiles.k, first_row + 16 * band, 2 * c);
      }
    }
    if (!may_see(p, b, b.begin + first_row, 16 * kBands, query, kQueries)) continue;
    const bool whole = keys.all_seen(p, query);
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
      if (!whole) {
        UNROLL
        for (int row = 0; row < 2 * kBands; ++row) {
          const uint32_t seen = keys.seen_by(p, row, query + 16 * n) >> (2 * t);
          UNROLL
          for (int e = 0; e < 4; ++e)
            if ((seen >> (8 * (e / 2) + e % 2) & 1) == 0)
              s[row / 2][e / 2][2 * (row % 2) + e % 2] = -std::numeric_limits<float>::infinity();
        }
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

}  // namespace

void attention_of_queries(Context& ctx, const AttentionPass& pass, ConstTensorView rows,
                          TensorView p) {
  constexpr const char* kOp = "attention_of_queries";
  visit_storage(pass.q.dtype(), [&]<class T>(Type<T>) {
    ExportCall<T> call(kOp, ctx, pass);
    call.p.prefix_tiles = call.p.prefix_rows > 0 ? 1 : 0;
    static_assert(kPrefixRows <= kListedRows);
    call.p.tiles = call.p.prefix_tiles + call.sizes.key_tiles(kListedRows);
    launch(ctx, kOp, attention_of_queries_kernel<T>, call.sizes.grid(call.p), kRowThreads, 0,
           call.p, call.q, call.k, call.prefix_k, call.lse, data_or_null<int32_t>(rows),
           static_cast<int>(p.dim(0)), p.as<float>());
  });
}

void attention_prefix_share(Context& ctx, const AttentionPass& pass, TensorView share) {
  constexpr const char* kOp = "attention_prefix_share";
  visit_storage(pass.q.dtype(), [&]<class T>(Type<T>) {
    ExportCall<T> call(kOp, ctx, pass);
    call.p.tiles = call.sizes.query_tiles(kListedRows);
    launch(ctx, kOp, attention_prefix_share_kernel<T>, call.sizes.grid(call.p), kRowThreads, 0,
           call.p, call.q, call.prefix_k, call.lse, share.as<float>());
  });
}

void attention_received(Context& ctx, const AttentionPass& pass, ConstTensorView weight,
                        TensorView received) {
  constexpr const char* kOp = "attention_received";
  const QueryWeights weights{data_or_null<float>(weight), weight.rank() == 2};
  visit_storage(pass.q.dtype(), [&]<class T>(Type<T>) {
    ExportCall<T> call(kOp, ctx, pass);
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
    ExportCall<T> call(kOp, ctx, pass);
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
    ExportCall<T> call(kOp, ctx, pass);
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
