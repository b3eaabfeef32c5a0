// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <limits>

#include "kernels/attention.h"
#include "kernels/attention_device.cuh"
#include "kernels/attention_launch.cuh"
#include "kernels/attention_mask.cuh"
#include "kernels/require_tensor.h"
#include "runtime/launch.cuh"

namespace scgraft::cuda {
namespace {

// Softmax of rows that arrive tile by tile. `largest` and the scores are in units of log2: score *
// scale * log2(e).
struct RunningSoftmax {
  float largest = -std::numeric_limits<float>::infinity();
  float sum = 0;

  // Takes the largest score of the next tile; returns what to multiply earlier sums with.
  __device__ float raise(float tile_largest) {
    const float before = largest;
    largest = fmaxf(largest, tile_largest);
    const float factor = gpu::exp2_fast(before - base());
    sum *= factor;
    return factor;
  }
  // What to subtract from scores: 0 while the row has seen nothing, since -inf - -inf is no number.
  __device__ float base() const {
    return largest == -std::numeric_limits<float>::infinity() ? 0 : largest;
  }
  // What to multiply the sums over v with: 0 for a row that has seen nothing.
  __device__ float factor(float kept) const { return sum == 0 ? 0 : kept / sum; }
  __device__ float lse() const { return largest / kLog2E + logf(sum); }
};

// Queries that see no key.
template <class T>
__device__ void write_nothing_seen(const AttentionProblem& p, const AttentionBlock& b, int rows,
                                   T* o, float* lse) {
  const int end = b.begin + rows < b.queries ? b.begin + rows : b.queries;
  for (int i = b.begin; i < end; ++i) {
    const int64_t row = b.first_query + i;
    for (int d = static_cast<int>(threadIdx.x); d < p.head_dim; d += static_cast<int>(blockDim.x))
      o[row * p.stride() + b.head * p.head_dim + d] = gpu::from_f32<T>(0);
    if (threadIdx.x == 0) lse[row * p.heads + b.head] = -std::numeric_limits<float>::infinity();
  }
}

// ---- f32 on ordinary cores --------------------------------------------------------------------

constexpr int kRowsQueries = 64;
constexpr int kRowsKeys = 32;
constexpr int kRowsThreads = 2 * kRowsQueries;

template <int kDim>
struct RowsShared {
  float *q, *kv, *weights;
  SCGRAFT_HD explicit RowsShared(gpu::SharedCarver& carve)
      : q(carve.take<float>(RowTile<kRowsQueries, kDim>::kSize)),
        kv(carve.take<float>(RowTile<kRowsKeys, kDim>::kSize)),
        weights(carve.take<float>(kRowsQueries * WeightTile<kRowsKeys / 8>::kStride)) {}
};

// A block owns kRowsQueries queries of one (cell, head) and walks the keys in tiles of kRowsKeys; a
// group of eight threads owns four queries. k and v share one tile, which lets 128 columns fit into
// the 64 KiB of sm_75. Reads q once and k, v once per block, mostly from L2; bound by f32
// multiply-adds.
template <class T, int kDim>
__global__ void __launch_bounds__(kRowsThreads, 2)
    attention_rows_kernel(AttentionProblem p, const T* q, const T* k, const T* v, const T* prefix_k,
                          const T* prefix_v, T* o, float* lse) {
  constexpr int kColumns = kRowsKeys / 8;
  using Weights = WeightTile<kColumns>;
  const AttentionBlock b = attention_block(p, kRowsQueries);
  if (b.begin >= b.queries) return;
  const auto next_tile = [&](int key) {
    return next_key_tile<kRowsKeys>(p, b, key, b.begin, kRowsQueries);
  };
  int key = next_tile(first_key(p));
  if (key >= b.keys) return write_nothing_seen(p, b, kRowsQueries, o, lse);
  gpu::SharedCarver carve(gpu::shared_memory());
  const RowsShared<kDim> tiles(carve);
  const int64_t queries_at = b.first_query * p.stride() + b.head * p.head_dim;
  RowTile<kRowsQueries, kDim>::load(tiles.q, q + queries_at, p, b.begin, b.queries);

  const float scale_log2 = p.scale * kLog2E;
  const int lane = gpu::lane();
  RunningSoftmax softmax[4];
  gpu::F4 sum[4][kDim / 32] = {};
  for (; key < b.keys; key = next_tile(key + kRowsKeys)) {
    const RowPair<T> rows = key_rows(p, b, k, v, prefix_k, prefix_v, key);
    gpu::sync_block();  // nobody still reads v of the tile before
    RowTile<kRowsKeys, kDim>::load(tiles.kv, rows.first, p, rows.begin, rows.rows);
    gpu::sync_block();
    float s[4][kColumns];
    micro_product<kDim>(tiles.q, tiles.kv, s);

    const bool whole = all_seen(p, b, key, kRowsKeys, b.begin);
    UNROLL
    for (int i = 0; i < 4; ++i) {
      float largest = -std::numeric_limits<float>::infinity();
      uint32_t seen = ~0u;
      if (!whole) seen = static_cast<uint32_t>(keys_seen(p, b, key, b.begin + micro_row(i)));
      UNROLL
      for (int j = 0; j < kColumns; ++j) {
        const bool valid = seen >> micro_column(j) & 1;
        s[i][j] = valid ? s[i][j] * scale_log2 : -std::numeric_limits<float>::infinity();
        largest = fmaxf(largest, s[i][j]);
      }
      UNROLL
      for (int mask = 4; mask > 0; mask /= 2)
        largest = fmaxf(largest, gpu::shuffle_xor(largest, mask));
      const float factor = softmax[i].raise(largest);
      UNROLL
      for (int n = 0; n < kDim / 32; ++n) sum[i][n] = scaled(sum[i][n], factor);
      UNROLL
      for (int j = 0; j < kColumns; ++j) {
        s[i][j] = gpu::exp2_fast(s[i][j] - softmax[i].base());
        softmax[i].sum += s[i][j];
      }
    }
    if (p.threshold > 0) {
      // The four queries of the eight threads see two groups of 16 keys: one Philox call each.
      static_assert(kRowsKeys == 32);
      const uint32_t mine = keep_bits(p, b, b.begin + micro_row(lane % 8 / 2), key / 16 + lane % 2);
      UNROLL
      for (int i = 0; i < 4; ++i) {
        UNROLL
        for (int group = 0; group < 2; ++group) {
          const uint32_t bits = gpu::shuffle(mine, (lane & ~7) | (2 * i + group));
          UNROLL
          for (int j = 2 * group; j < 2 * group + 2; ++j)
            if ((bits >> (micro_column(j) % 16) & 1) == 0) s[i][j] = 0;
        }
      }
    }
    Weights::put(tiles.weights, s);
    gpu::sync_block();  // nobody still reads k
    RowTile<kRowsKeys, kDim>::load(tiles.kv, rows.second, p, rows.begin, rows.rows);
    gpu::sync_block();
    Weights::template accumulate<kDim>(tiles.weights, tiles.kv, sum);
  }

  UNROLL
  for (int i = 0; i < 4; ++i) {
    UNROLL
    for (int mask = 4; mask > 0; mask /= 2)
      softmax[i].sum += gpu::shuffle_xor(softmax[i].sum, mask);
    const int query = b.begin + micro_row(i);
    if (query >= b.queries) continue;
    const float factor = softmax[i].factor(p.kept);
    UNROLL
    for (int n = 0; n < kDim / 32; ++n)
      store_columns(o + queries_at + query * p.stride(), 4 * micro_column(n),
                    scaled(sum[i][n], factor), p);
    if (lane % 8 == 0) lse[(b.first_query + query) * p.heads + b.head] = softmax[i].lse();
  }
}

// ---- 16-bit types on tensor cores ---------------------------------------------------------------

// A warp owns 16 * kBands queries: two bands share each fragment of k and v, which halves the
// reads of shared memory, as long as the accumulators of both fit into registers.
template <int kDim, bool kSm80>
struct FragmentShape {
  static constexpr int kBands = kSm80 && kDim <= 64 ? 2 : 1;
  static constexpr int kQueries = 16 * kBands * kFragmentWarps;
  static constexpr int kKeys = kDim <= 96 ? 64 : 32;  // two stages of k and v within 48 KiB or so
};

template <class T, int kDim, bool kSm80>
struct FragmentShared {
  using Size = FragmentShape<kDim, kSm80>;
  T *q, *k, *v;  // k and v: two tiles each
  SCGRAFT_HD explicit FragmentShared(gpu::SharedCarver& carve)
      : q(carve.take<T>(Size::kQueries * kDim, 128)),
        k(carve.take<T>(2 * Size::kKeys * kDim, 128)),
        v(carve.take<T>(2 * Size::kKeys * kDim, 128)) {}
};

// A block owns kQueries queries of one (cell, head) and walks the keys in tiles, the next one
// loading while this one is used. Scores and weights never leave the registers: a warp's scores are
// laid out as the first operand of the product with v. Reads q once and k, v once per block, mostly
// from L2; bound by the tensor cores, on sm_90 as much by the exponentials
// and by shared memory (docs/attention-forward.md).
template <class T, int kDim, bool kSm80>
__global__ void __launch_bounds__(kFragmentThreads, 2)
    attention_fragments_kernel(AttentionProblem p, const T* q, const T* k, const T* v,
                               const T* prefix_k, const T* prefix_v, T* o, float* lse) {
  using Size = FragmentShape<kDim, kSm80>;
  using Tile = FragmentTile<T, kDim>;
  constexpr int kBands = Size::kBands, kKeys = Size::kKeys;
  const AttentionBlock b = attention_block(p, Size::kQueries);
  if (b.begin >= b.queries) return;
  const auto next_tile = [&](int key) {
    return next_key_tile<kKeys>(p, b, key, b.begin, Size::kQueries);
  };
  int key = next_tile(first_key(p));
  if (key >= b.keys) return write_nothing_seen(p, b, Size::kQueries, o, lse);
  gpu::SharedCarver carve(gpu::shared_memory());
  const FragmentShared<T, kDim, kSm80> tiles(carve);
  const int64_t queries_at = b.first_query * p.stride() + b.head * p.head_dim;
  const auto load_keys = [&](int from, int to) {
    const RowPair<T> rows = key_rows(p, b, k, v, prefix_k, prefix_v, from);
    const int at = to * kKeys * kDim;
    Tile::template load<kSm80, kKeys>(tiles.k + at, rows.first, p, rows.begin, rows.rows);
    Tile::template load<kSm80, kKeys>(tiles.v + at, rows.second, p, rows.begin, rows.rows);
    if constexpr (kSm80) gpu::cp_async_commit();
  };
  Tile::template load<kSm80, Size::kQueries>(tiles.q, q + queries_at, p, b.begin, b.queries);
  load_keys(key, 0);

  const int lane = gpu::lane(), g = lane / 4, t = lane % 4;
  const int first_row = gpu::warp() * 16 * kBands;  // of this warp, in the tile
  const float scale_log2 = p.scale * kLog2E;
  uint32_t query[kBands][kDim / 16][4];
  RunningSoftmax softmax[kBands][2];  // rows g and g + 8 of a band
  float sum[kBands][kDim / 8][4] = {};
  int tile = 0;
  for (int next; key < b.keys; key = next, ++tile) {
    if constexpr (kSm80) gpu::cp_async_wait<0>();
    gpu::sync_block();  // this tile is there, and nobody still reads the one before it
    next = next_tile(key + kKeys);
    if (next < b.keys) load_keys(next, tile % 2 ^ 1);
    T* k_tile = tiles.k + tile % 2 * kKeys * kDim;
    T* v_tile = tiles.v + tile % 2 * kKeys * kDim;
    if (tile == 0) {
      UNROLL
      for (int band = 0; band < kBands; ++band) {
        UNROLL
        for (int c = 0; c < kDim / 16; ++c)
          Tile::first(query[band][c], tiles.q, first_row + 16 * band, 2 * c);
      }
    }
    if (!may_see(p, b, key, kKeys, b.begin + first_row, 16 * kBands)) continue;

    float s[kBands][kKeys / 8][4] = {};
    UNROLL
    for (int n = 0; n < kKeys / 16; ++n) {
      UNROLL
      for (int c = 0; c < kDim / 16; ++c) {
        uint32_t keys[4];
        Tile::over_columns(keys, k_tile, 16 * n, 2 * c);
        UNROLL
        for (int band = 0; band < kBands; ++band)
          multiply_pair<T, kSm80>(s[band][2 * n], s[band][2 * n + 1], query[band][c], keys);
      }
    }

    UNROLL
    for (int band = 0; band < kBands; ++band) {
      if (!all_seen(p, b, key, kKeys, b.begin + first_row)) {
        UNROLL
        for (int half = 0; half < 2; ++half) {
          const int row = b.begin + first_row + 16 * band + g + 8 * half;
          UNROLL
          for (int part = 0; part < kKeys / 32; ++part) {
            const auto seen =
                static_cast<uint32_t>(keys_seen(p, b, key + 32 * part, row)) >> (2 * t);
            UNROLL
            for (int n = 0; n < 4; ++n) {
              UNROLL
              for (int e = 0; e < 2; ++e)
                if ((seen >> (8 * n + e) & 1) == 0)
                  s[band][4 * part + n][2 * half + e] = -std::numeric_limits<float>::infinity();
            }
          }
        }
      }
      UNROLL
      for (int half = 0; half < 2; ++half) {
        float largest = s[band][0][2 * half];
        UNROLL
        for (int n = 0; n < kKeys / 8; ++n)
          largest = fmaxf(largest, fmaxf(s[band][n][2 * half], s[band][n][2 * half + 1]));
        largest = fmaxf(largest, gpu::shuffle_xor(largest, 1));
        largest = fmaxf(largest, gpu::shuffle_xor(largest, 2));
        RunningSoftmax& row = softmax[band][half];
        const float factor = row.raise(largest * scale_log2);
        const float base = row.base();
        UNROLL
        for (int n = 0; n < kDim / 8; ++n) {
          sum[band][n][2 * half] *= factor;
          sum[band][n][2 * half + 1] *= factor;
        }
        UNROLL
        for (int n = 0; n < kKeys / 8; ++n) {
          UNROLL
          for (int e = 2 * half; e < 2 * half + 2; ++e) {
            s[band][n][e] = gpu::exp2_fast(fmaf(s[band][n][e], scale_log2, -base));
            row.sum += s[band][n][e];
          }
        }
      }
      if (p.threshold > 0) {
        // Per 32 keys the two rows of four threads see two groups of 16: one Philox call each.
        UNROLL
        for (int part = 0; part < kKeys / 32; ++part) {
          const int row = b.begin + first_row + 16 * band + g + 8 * (t / 2);
          const uint32_t mine = keep_bits(p, b, row, key / 16 + 2 * part + t % 2);
          UNROLL
          for (int n = 0; n < 4; ++n) {
            UNROLL
            for (int half = 0; half < 2; ++half) {
              const uint32_t bits = gpu::shuffle(mine, (lane & ~3) | (2 * half + n / 2));
              UNROLL
              for (int e = 0; e < 2; ++e)
                if ((bits >> (n % 2 * 8 + 2 * t + e) & 1) == 0)
                  s[band][4 * part + n][2 * half + e] = 0;
            }
          }
        }
      }
    }

    UNROLL
    for (int n = 0; n < kKeys / 16; ++n) {
      uint32_t weights[kBands][4];
      UNROLL
      for (int band = 0; band < kBands; ++band)
        as_first_operand<T>(weights[band], s[band][2 * n], s[band][2 * n + 1]);
      UNROLL
      for (int c = 0; c < kDim / 16; ++c) {
        uint32_t values[4];
        Tile::over_rows(values, v_tile, 16 * n, 2 * c);
        UNROLL
        for (int band = 0; band < kBands; ++band)
          multiply_pair<T, kSm80>(sum[band][2 * c], sum[band][2 * c + 1], weights[band], values);
      }
    }
  }

  UNROLL
  for (int band = 0; band < kBands; ++band) {
    float factor[2];
    UNROLL
    for (int half = 0; half < 2; ++half) {
      RunningSoftmax& row = softmax[band][half];
      row.sum += gpu::shuffle_xor(row.sum, 1);
      row.sum += gpu::shuffle_xor(row.sum, 2);
      factor[half] = row.factor(p.kept);
      const int at = b.begin + first_row + 16 * band + g + 8 * half;
      if (t == 0 && at < b.queries) lse[(b.first_query + at) * p.heads + b.head] = row.lse();
    }
    store_fragments<T, kDim>(tiles.q, first_row + 16 * band, sum[band], factor, o + queries_at, p,
                             b.begin, b.queries);
  }
}

template <class T>
struct Tensors {
  const T *q, *k, *v, *prefix_k, *prefix_v;
  T* o;
  float* lse;
};

template <class T, int kDim>
void launch_rows(Context& ctx, AttentionProblem p, const AttentionSizes& sizes,
                 const Tensors<T>& x) {
  p.tiles = sizes.query_tiles(kRowsQueries);
  launch(ctx, "attention", attention_rows_kernel<T, kDim>, sizes.grid(p), kRowsThreads,
         shared_bytes<RowsShared<kDim>>(), p, x.q, x.k, x.v, x.prefix_k, x.prefix_v, x.o, x.lse);
}

template <class T, int kDim, bool kSm80>
void launch_fragments(Context& ctx, AttentionProblem p, const AttentionSizes& sizes,
                      const Tensors<T>& x) {
  p.tiles = sizes.query_tiles(FragmentShape<kDim, kSm80>::kQueries);
  launch(ctx, "attention", attention_fragments_kernel<T, kDim, kSm80>, sizes.grid(p),
         kFragmentThreads, shared_bytes<FragmentShared<T, kDim, kSm80>>(), p, x.q, x.k, x.v,
         x.prefix_k, x.prefix_v, x.o, x.lse);
}

}  // namespace

void attention(Context& ctx, ConstTensorView q, ConstTensorView k, ConstTensorView v,
               const Packing& queries, const Packing& keys, int64_t heads, Dropout dropout,
               TensorView o, TensorView lse, const AttentionMask& mask,
               const AttentionPrefix& prefix) {
  const AttentionProblem p =
      attention_problem("attention", ctx, queries, keys, heads, q.dim(1) / heads, dropout,
                        ctx.random(), mask, prefix, {q, k, v, prefix.k, prefix.v, o});
  const AttentionSizes sizes(queries, keys, heads);
  visit_attention(q.dtype(), [&]<class T>(Type<T>) {
    const Tensors<T> x{
        q.as<T>(), k.as<T>(),      v.as<T>(), data_or_null<T>(prefix.k), data_or_null<T>(prefix.v),
        o.as<T>(), lse.as<float>()};
    visit_attention_kernel<T>(
        ctx, p,
        [&]<int kDim, bool kSm80>(Fragments<kDim, kSm80>) {
          launch_fragments<T, kDim, kSm80>(ctx, p, sizes, x);
        },
        [&]<int kDim>(Rows<kDim>) { launch_rows<T, kDim>(ctx, p, sizes, x); });
  });
}

}  // namespace scgraft::cuda
