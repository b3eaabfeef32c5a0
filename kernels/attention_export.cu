// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention_device.cuh"
#include "kernels/attention_export.cuh"
#include "kernels/attention_export.h"
#include "kernels/attention_launch.cuh"
#include "kernels/require_tensor.h"
#include "kernels/rows.cuh"
#include "runtime/launch.cuh"

namespace scgraft::cuda {
namespace {

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

}  // namespace

void attention_of_queries(Context& ctx, const AttentionPass& pass, ConstTensorView rows,
                          TensorView p) {
  constexpr const char* kOp = "attention_of_queries";
  visit_storage(pass.q.dtype(), [&]<class T>(Type<T>) {
    ExportCall<T> call(kOp, ctx, pass);
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

}  // namespace scgraft::cuda
