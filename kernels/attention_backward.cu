// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <limits>

#include "kernels/attention.h"
#include "kernels/attention_device.cuh"
#include "kernels/attention_launch.cuh"
#include "kernels/attention_mask.cuh"
#include "kernels/require_tensor.h"
#include "runtime/launch.cuh"

// Two kernels, so that every sum has one owner and one order: one over tiles of keys for dk and dv,
// one over tiles of queries for dq. Both compute the scores again. They mirror each other: a block
// owns a tile of rows of two tensors and walks the rows of the other two,
//
//              owns     walks    sums
//   keys       k, v     q, do    dk = scale sum ds q,  dv = sum (p z) do
//   queries    q, do    k, v     dq = scale sum ds k
//
// with scores and the products do . v of (own rows x walked rows) in registers. Rows of the prefix
// are keys like others (attention_mask.cuh). As owners they write their sums over one cell, which a
// third kernel adds up cell by cell.

namespace scgraft::cuda {
namespace {

template <class T>
struct BackwardTensors {
  const T *q, *k, *v, *dout;
  const float* terms;  // [2, heads, query tokens]: see QueryTerms
  T *dq, *dk, *dv;     // null: not wanted
  const T *prefix_k, *prefix_v;
  float *prefix_dk, *prefix_dv;  // sums over one (cell, head) each, [cells, heads, rows, head_dim]
};

// What the weights of a query are made from: p = exp2(score * scale * log2(e) - lse).
struct QueryTerms {
  float lse = std::numeric_limits<float>::infinity();  // in units of log2; +inf: all weights are 0
  float delta = 0;                                     // do . o
};

// Computes the terms of all queries, with those of neighbouring queries side by side: the kernels
// below read them per head. A block owns kTermsWarps queries of one head, a warp one. Reads o and
// do once and is bound by that.
constexpr int kTermsWarps = 8;
template <class T>
__global__ void __launch_bounds__(kTermsWarps* gpu::kWarp)
    attention_terms_kernel(AttentionProblem p, const T* o, const T* dout, const float* lse,
                           float* terms) {
  const int64_t head = blockIdx.x % p.heads;
  const int64_t row = blockIdx.x / p.heads * kTermsWarps + gpu::warp();
  if (row >= p.queries.tokens) return;
  const T* x = o + row * p.stride() + head * p.head_dim;
  const T* y = dout + row * p.stride() + head * p.head_dim;
  float delta = 0;
  if (p.vectors()) {
    for (int d = 4 * gpu::lane(); d < p.head_dim; d += 4 * gpu::kWarp)
      delta = dot4(load4(x + d), load4(y + d), delta);
  } else {
    for (int d = gpu::lane(); d < p.head_dim; d += gpu::kWarp)
      delta += gpu::to_f32(x[d]) * gpu::to_f32(y[d]);
  }
  delta = gpu::warp_sum(delta);
  if (gpu::lane() == 0) {
    const float of_row = lse[row * p.heads + head];
    const bool sees_nothing = of_row == -std::numeric_limits<float>::infinity();
    terms[head * p.queries.tokens + row] = sees_nothing ? -of_row : of_row * kLog2E;
    terms[(p.heads + head) * p.queries.tokens + row] = delta;
  }
}

inline __device__ QueryTerms query_terms(const AttentionProblem& p, const AttentionBlock& b,
                                         const float* terms, int query) {
  if (query >= b.queries) return {};
  const int64_t row = b.first_query + query;
  return {terms[b.head * p.queries.tokens + row],
          terms[(p.heads + b.head) * p.queries.tokens + row]};
}

// Queries and what the loss wants of them, from query `begin` on.
template <class T>
__device__ RowPair<T> query_rows(const AttentionProblem& p, const AttentionBlock& b,
                                 const BackwardTensors<T>& x, int begin) {
  const int64_t at = b.first_query * p.stride() + b.head * p.head_dim;
  return {x.q + at, x.dout + at, begin, b.queries};
}

// The rows that a block owns, and those that it walks from number `walked` on.
template <bool kKeysOwn, class T>
__device__ RowPair<T> own_rows(const AttentionProblem& p, const AttentionBlock& b,
                               const BackwardTensors<T>& x) {
  if constexpr (!kKeysOwn) return query_rows(p, b, x, b.begin);
  return key_rows(p, b, x.k, x.v, x.prefix_k, x.prefix_v, b.begin);
}
template <bool kKeysOwn, class T>
__device__ RowPair<T> walked_rows(const AttentionProblem& p, const AttentionBlock& b,
                                  const BackwardTensors<T>& x, int walked) {
  if constexpr (kKeysOwn) return query_rows(p, b, x, walked);
  return key_rows(p, b, x.k, x.v, x.prefix_k, x.prefix_v, walked);
}

// The end of the walk, and the first tile from `walked` on that has something to do with a row of
// the block.
template <bool kKeysOwn>
__device__ int walk_end(const AttentionBlock& b) {
  return kKeysOwn ? b.queries : b.keys;
}
template <bool kKeysOwn, int kOwn, int kWalked>
__device__ int next_walked(const AttentionProblem& p, const AttentionBlock& b, int walked) {
  if constexpr (!kKeysOwn) return next_key_tile<kWalked>(p, b, walked, b.begin, kOwn);
  if (b.begin >= 0 && (key_bits(p, b, b.begin) & bits_below(kOwn)) == 0) return b.queries;
  while (walked < b.queries && !may_see(p, b, b.begin, kOwn, walked, kWalked)) walked += kWalked;
  return walked;
}

// Whether a warp, which owns 16 rows, has something to do with the walked rows
// [walked, walked + kCount).
template <bool kKeysOwn, int kCount>
__device__ bool warp_sees(const AttentionProblem& p, const AttentionBlock& b, int own, int walked) {
  return kKeysOwn ? may_see(p, b, own, 16, walked, kCount) : may_see(p, b, walked, kCount, own, 16);
}

// Rows own, own + kStep, ... that a thread owns, kRows of them, and which walked rows they have
// something to do with. Walked queries behind the end have no weights.
template <bool kKeysOwn, int kRows, int kStep>
struct OwnSees;
template <int kRows, int kStep>
struct OwnSees<true, kRows, kStep> {
  OwnKeys<kRows, kStep> keys;
  __device__ OwnSees(const AttentionProblem& p, const AttentionBlock& b, int own)
      : keys(p, b, own) {}
  template <int kCount>
  __device__ bool all(const AttentionProblem& p, const AttentionBlock&, int walked) const {
    return keys.all_seen(p, walked);
  }
  __device__ uint32_t row(const AttentionProblem& p, const AttentionBlock&, int i,
                          int walked) const {
    return keys.seen_by(p, i, walked);
  }
};
template <int kRows, int kStep>
struct OwnSees<false, kRows, kStep> {
  int query;
  __device__ OwnSees(const AttentionProblem&, const AttentionBlock&, int own) : query(own) {}
  template <int kCount>
  __device__ bool all(const AttentionProblem& p, const AttentionBlock& b, int walked) const {
    return all_seen(p, b, walked, kCount, query);
  }
  __device__ uint32_t row(const AttentionProblem& p, const AttentionBlock& b, int i,
                          int walked) const {
    return static_cast<uint32_t>(keys_seen(p, b, walked, query + kStep * i));
  }
};

// Where a block that owns keys writes its sums.
template <class T>
struct KeySums {
  T *dk, *dv;                    // of the cell and head; null: not wanted
  float *prefix_dk, *prefix_dv;  // the same for rows of the prefix

  __device__ KeySums(const AttentionProblem& p, const AttentionBlock& b,
                     const BackwardTensors<T>& x) {
    const bool prefix = b.begin < 0;
    const int64_t at = b.first_key * p.stride() + b.head * p.head_dim;
    const int64_t unit = blockIdx.x / static_cast<uint32_t>(p.tiles);
    const int64_t prefix_at = unit * p.prefix_rows * p.head_dim;
    dk = prefix || x.dk == nullptr ? nullptr : x.dk + at;
    dv = prefix || x.dv == nullptr ? nullptr : x.dv + at;
    prefix_dk = prefix && x.prefix_dk != nullptr ? x.prefix_dk + prefix_at : nullptr;
    prefix_dv = prefix && x.prefix_dv != nullptr ? x.prefix_dv + prefix_at : nullptr;
  }
};
// Whether a block that owns keys wants their dk, and their dv.
template <class T>
__device__ bool wants_dk(const AttentionBlock& b, const BackwardTensors<T>& x) {
  return b.begin < 0 ? x.prefix_dk != nullptr : x.dk != nullptr;
}
template <class T>
__device__ bool wants_dv(const AttentionBlock& b, const BackwardTensors<T>& x) {
  return b.begin < 0 ? x.prefix_dv != nullptr : x.dv != nullptr;
}

// ---- f32 on ordinary cores --------------------------------------------------------------------

template <int kDim>
struct RowsShape {
  static constexpr int kOwn = kDim <= 64 ? 64 : 32;  // four tiles within the 64 KiB of sm_75
  static constexpr int kWalked = kOwn / 2;
  static constexpr int kThreads = 2 * kOwn;
};

template <int kDim>
struct RowsShared {
  using Size = RowsShape<kDim>;
  float *own1, *own2, *walked1, *walked2, *weights;
  float *lse, *delta;  // of walked queries
  SCGRAFT_HD explicit RowsShared(gpu::SharedCarver& carve)
      : own1(carve.take<float>(RowTile<Size::kOwn, kDim>::kSize)),
        own2(carve.take<float>(RowTile<Size::kOwn, kDim>::kSize)),
        walked1(carve.take<float>(RowTile<Size::kWalked, kDim>::kSize)),
        walked2(carve.take<float>(RowTile<Size::kWalked, kDim>::kSize)),
        weights(carve.take<float>(Size::kOwn * WeightTile<Size::kWalked / 8>::kStride)),
        lse(carve.take<float>(Size::kWalked)),
        delta(carve.take<float>(Size::kWalked)) {}
};

// A block owns kOwn rows of one (cell, head), a group of eight threads four of them. Reads its own
// rows once and the walked rows once per block, mostly from L2; bound by f32 multiply-adds.
template <class T, int kDim, bool kKeysOwn>
__global__ void __launch_bounds__(RowsShape<kDim>::kThreads, 2)
    attention_backward_rows_kernel(AttentionProblem p, BackwardTensors<T> x) {
  using Size = RowsShape<kDim>;
  constexpr int kColumns = Size::kWalked / 8;
  using Weights = WeightTile<kColumns>;
  const AttentionBlock b = attention_block(p, Size::kOwn);
  const RowPair<T> own = own_rows<kKeysOwn>(p, b, x);
  if (own.begin >= own.rows) return;
  gpu::SharedCarver carve(gpu::shared_memory());
  const RowsShared<kDim> tiles(carve);
  const bool need_ds = !kKeysOwn || wants_dk(b, x);
  const bool need_dv = kKeysOwn && wants_dv(b, x);
  RowTile<Size::kOwn, kDim>::load(tiles.own1, own.first, p, own.begin, own.rows);
  if (need_ds) RowTile<Size::kOwn, kDim>::load(tiles.own2, own.second, p, own.begin, own.rows);

  const float scale_log2 = p.scale * kLog2E;
  const int lane = gpu::lane();
  QueryTerms own_terms[4];
  if constexpr (!kKeysOwn) {
    UNROLL
    for (int i = 0; i < 4; ++i) own_terms[i] = query_terms(p, b, x.terms, b.begin + micro_row(i));
  }
  gpu::F4 sum1[4][kDim / 32] = {};
  gpu::F4 sum2[4][kDim / 32] = {};
  const auto next_tile = [&](int walked) {
    return next_walked<kKeysOwn, Size::kOwn, Size::kWalked>(p, b, walked);
  };
  const int first_own = b.begin + gpu::warp() * 16;  // of this warp
  const OwnSees<kKeysOwn, 4, 4> sees(p, b, b.begin + micro_row(0));
  for (int walked = next_tile(kKeysOwn ? 0 : first_key(p)); walked < walk_end<kKeysOwn>(b);
       walked = next_tile(walked + Size::kWalked)) {
    const RowPair<T> rows = walked_rows<kKeysOwn>(p, b, x, walked);
    gpu::sync_block();  // nobody still reads the tiles before
    RowTile<Size::kWalked, kDim>::load(tiles.walked1, rows.first, p, rows.begin, rows.rows);
    RowTile<Size::kWalked, kDim>::load(tiles.walked2, rows.second, p, rows.begin, rows.rows);
    if (kKeysOwn && threadIdx.x < Size::kWalked) {
      const auto at = static_cast<int>(threadIdx.x);
      const QueryTerms terms = query_terms(p, b, x.terms, walked + at);
      tiles.lse[at] = terms.lse;
      tiles.delta[at] = terms.delta;
    }
    gpu::sync_block();
    if (!warp_sees<kKeysOwn, Size::kWalked>(p, b, first_own, walked)) continue;

    float weight[4][kColumns], ds[4][kColumns] = {};
    micro_product<kDim>(tiles.own1, tiles.walked1, weight);
    if (need_ds) micro_product<kDim>(tiles.own2, tiles.walked2, ds);
    if (!sees.template all<Size::kWalked>(p, b, walked)) {
      UNROLL
      for (int i = 0; i < 4; ++i) {
        const uint32_t seen = sees.row(p, b, i, walked);
        UNROLL
        for (int j = 0; j < kColumns; ++j)
          if ((seen >> micro_column(j) & 1) == 0)
            weight[i][j] = -std::numeric_limits<float>::infinity();
      }
    }
    uint32_t kept = ~0u;  // bit kColumns * i + j
    if (p.threshold > 0) {
      // One Philox call per thread, for 16 keys of one query: as owners the 16 rows of its warp, as
      // walked rows those of one of the two groups that its eight threads see.
      const uint32_t mine =
          kKeysOwn ? keep_bits(p, b, walked + lane % Size::kWalked, b.begin / 16 + gpu::warp())
                   : keep_bits(p, b, b.begin + micro_row(lane % 8 / (kColumns / 2)),
                               walked / 16 + lane % (kColumns / 2));
      kept = 0;
      UNROLL
      for (int i = 0; i < 4; ++i) {
        UNROLL
        for (int j = 0; j < kColumns; ++j) {
          const int from = kKeysOwn ? micro_column(j) : (lane & ~7) | (kColumns / 2 * i + j / 2);
          const int bit = kKeysOwn ? micro_row(i) % 16 : micro_column(j) % 16;
          kept |= (gpu::shuffle(mine, from) >> bit & 1) << (kColumns * i + j);
        }
      }
    }
    UNROLL
    for (int i = 0; i < 4; ++i) {
      UNROLL
      for (int j = 0; j < kColumns; ++j) {
        const QueryTerms terms =
            kKeysOwn ? QueryTerms{tiles.lse[micro_column(j)], tiles.delta[micro_column(j)]}
                     : own_terms[i];
        const float probability = gpu::exp2_fast(weight[i][j] * scale_log2 - terms.lse);
        const bool keep = kept >> (kColumns * i + j) & 1;
        ds[i][j] = probability * ((keep ? ds[i][j] * p.kept : 0) - terms.delta);
        weight[i][j] = keep ? probability : 0;
      }
    }
    if (need_ds) {
      Weights::put(tiles.weights, ds);
      Weights::template accumulate<kDim>(tiles.weights, tiles.walked1, sum1);
    }
    if (need_dv) {
      Weights::put(tiles.weights, weight);
      Weights::template accumulate<kDim>(tiles.weights, tiles.walked2, sum2);
    }
  }

  const auto store = [&](auto* head, int64_t stride, const gpu::F4(&sum)[4][kDim / 32],
                         float factor) {
    UNROLL
    for (int i = 0; i < 4; ++i) {
      const int row = own.begin + micro_row(i);
      if (row >= own.rows) continue;
      UNROLL
      for (int n = 0; n < kDim / 32; ++n)
        store_columns(head + row * stride, 4 * micro_column(n), scaled(sum[i][n], factor), p);
    }
  };
  if constexpr (kKeysOwn) {
    const KeySums<T> out(p, b, x);
    if (out.dk) store(out.dk, p.stride(), sum1, p.scale);
    if (out.dv) store(out.dv, p.stride(), sum2, p.kept);
    if (out.prefix_dk) store(out.prefix_dk, p.head_dim, sum1, p.scale);
    if (out.prefix_dv) store(out.prefix_dv, p.head_dim, sum2, p.kept);
  } else {
    store(x.dq + b.first_query * p.stride() + b.head * p.head_dim, p.stride(), sum1, p.scale);
  }
}

// ---- 16-bit types on tensor cores ---------------------------------------------------------------

template <int kDim>
struct FragmentShape {
  static constexpr int kOwn = 16 * kFragmentWarps;
  static constexpr int kWalked = kDim <= 64 ? 64 : 32;
  static constexpr int kStep = 32;  // walked rows whose scores are in registers at a time
  static constexpr bool kHoldOwn = kDim <= 64;  // own rows stay in registers
};

template <class T, int kDim>
struct FragmentShared {
  using Size = FragmentShape<kDim>;
  T *own1, *own2;
  T *walked1, *walked2;  // two tiles each
  float *lse, *delta;    // of the queries in two walked tiles
  SCGRAFT_HD explicit FragmentShared(gpu::SharedCarver& carve)
      : own1(carve.take<T>(Size::kOwn * kDim, 128)),
        own2(carve.take<T>(Size::kOwn * kDim, 128)),
        walked1(carve.take<T>(2 * Size::kWalked * kDim, 128)),
        walked2(carve.take<T>(2 * Size::kWalked * kDim, 128)),
        lse(carve.take<float>(2 * Size::kWalked)),
        delta(carve.take<float>(2 * Size::kWalked)) {}
};

// result[n] += own rows of a warp . 32 walked rows, over all columns. `held` are the own rows when
// they stay in registers.
template <class T, int kDim, bool kSm80>
__device__ void product_over_columns(
    float (&result)[4][4], const uint32_t (&held)[FragmentShape<kDim>::kHoldOwn ? kDim / 16 : 1][4],
    T* own, int own_row, T* walked, int walked_row) {
  using Tile = FragmentTile<T, kDim>;
  UNROLL
  for (int c = 0; c < kDim / 16; ++c) {
    uint32_t first[4];
    if constexpr (FragmentShape<kDim>::kHoldOwn) {
      UNROLL
      for (int i = 0; i < 4; ++i) first[i] = held[c][i];
    } else {
      Tile::first(first, own, own_row, 2 * c);
    }
    UNROLL
    for (int n = 0; n < 2; ++n) {
      uint32_t second[4];
      Tile::over_columns(second, walked, walked_row + 16 * n, 2 * c);
      multiply_pair<T, kSm80>(result[2 * n], result[2 * n + 1], first, second);
    }
  }
}

// sum += weights of (own rows of a warp x 32 walked rows) times those rows.
template <class T, int kDim, bool kSm80>
__device__ void accumulate_rows(float (&sum)[kDim / 8][4], const float (&weight)[4][4], T* walked,
                                int walked_row) {
  using Tile = FragmentTile<T, kDim>;
  UNROLL
  for (int n = 0; n < 2; ++n) {
    uint32_t first[4];
    as_first_operand<T>(first, weight[2 * n], weight[2 * n + 1]);
    UNROLL
    for (int c = 0; c < kDim / 16; ++c) {
      uint32_t second[4];
      Tile::over_rows(second, walked, walked_row + 16 * n, 2 * c);
      multiply_pair<T, kSm80>(sum[2 * c], sum[2 * c + 1], first, second);
    }
  }
}

// Writes 16 rows of sums times `factor` to [prefix rows, head_dim], from row `row` on.
template <int kDim>
__device__ void store_sums(const float (&d)[kDim / 8][4], float factor, float* head,
                           const AttentionProblem& p, int row) {
  const int g = gpu::lane() / 4, t = gpu::lane() % 4;
  UNROLL
  for (int half = 0; half < 2; ++half) {
    const int at = row + g + 8 * half;
    if (at >= p.prefix_rows) continue;
    UNROLL
    for (int n = 0; n < kDim / 8; ++n) {
      if (8 * n >= p.head_dim) break;
      head[at * p.head_dim + 8 * n + 2 * t] = d[n][2 * half] * factor;
      head[at * p.head_dim + 8 * n + 2 * t + 1] = d[n][2 * half + 1] * factor;
    }
  }
}

// A block owns kOwn rows of one (cell, head), a warp 16 of them, and walks tiles of kWalked rows,
// the next one loading while this one is used. Scores and their gradients never leave the
// registers. Reads its own rows once and the walked rows once per block, mostly from L2; bound by
// the tensor cores.
template <class T, int kDim, bool kKeysOwn, bool kSm80>
__global__ void __launch_bounds__(kFragmentThreads, kDim <= 64 ? 2 : 1)
    attention_backward_fragments_kernel(AttentionProblem p, BackwardTensors<T> x) {
  using Size = FragmentShape<kDim>;
  using Tile = FragmentTile<T, kDim>;
  constexpr int kWalked = Size::kWalked;
  const AttentionBlock b = attention_block(p, Size::kOwn);
  const RowPair<T> own = own_rows<kKeysOwn>(p, b, x);
  if (own.begin >= own.rows) return;
  gpu::SharedCarver carve(gpu::shared_memory());
  const FragmentShared<T, kDim> tiles(carve);
  const bool need_ds = !kKeysOwn || wants_dk(b, x);
  const bool need_dv = kKeysOwn && wants_dv(b, x);
  const auto next_tile = [&](int from) {
    return next_walked<kKeysOwn, Size::kOwn, kWalked>(p, b, from);
  };
  const auto load_walked = [&](int from, int to) {
    const RowPair<T> rows = walked_rows<kKeysOwn>(p, b, x, from);
    const int at = to * kWalked * kDim;
    Tile::template load<kSm80, kWalked>(tiles.walked1 + at, rows.first, p, rows.begin, rows.rows);
    Tile::template load<kSm80, kWalked>(tiles.walked2 + at, rows.second, p, rows.begin, rows.rows);
    if constexpr (kSm80) gpu::cp_async_commit();
  };
  // The terms of walked queries, one thread each.
  const auto thread = static_cast<int>(threadIdx.x);
  const bool has_terms = kKeysOwn && thread < kWalked;
  const auto put_terms = [&](int to, QueryTerms terms) {
    const int at = to * kWalked + thread;
    tiles.lse[at] = terms.lse;
    tiles.delta[at] = terms.delta;
  };
  const int end = walk_end<kKeysOwn>(b);
  int walked = next_tile(kKeysOwn ? 0 : first_key(p));
  if (walked < end) {
    Tile::template load<kSm80, Size::kOwn>(tiles.own1, own.first, p, own.begin, own.rows);
    Tile::template load<kSm80, Size::kOwn>(tiles.own2, own.second, p, own.begin, own.rows);
    load_walked(walked, 0);
    if (has_terms) put_terms(0, query_terms(p, b, x.terms, walked + thread));
  }

  const float scale_log2 = p.scale * kLog2E;
  const int lane = gpu::lane(), g = lane / 4, t = lane % 4;
  const int own_row = gpu::warp() * 16;  // of this warp, in the tile
  QueryTerms own_terms[2];               // rows g and g + 8
  if constexpr (!kKeysOwn) {
    UNROLL
    for (int half = 0; half < 2; ++half)
      own_terms[half] = query_terms(p, b, x.terms, b.begin + own_row + g + 8 * half);
  }
  constexpr int kHeld = Size::kHoldOwn ? kDim / 16 : 1;
  uint32_t held1[kHeld][4] = {}, held2[kHeld][4] = {};
  float sum1[kDim / 8][4] = {};
  float sum2[kKeysOwn ? kDim / 8 : 1][4] = {};
  const OwnSees<kKeysOwn, 2, 8> sees(p, b, b.begin + own_row + g);
  int stage = 0;
  bool first_tile = true;
  for (int next; walked < end; walked = next, stage ^= 1) {
    T* walked1 = tiles.walked1 + stage * kWalked * kDim;
    T* walked2 = tiles.walked2 + stage * kWalked * kDim;
    next = next_tile(walked + kWalked);
    const bool more = next < end;
    if constexpr (kSm80) gpu::cp_async_wait<0>();
    gpu::sync_block();  // this tile is there, and nobody still reads the one before it
    QueryTerms next_terms;
    if (more) {
      load_walked(next, stage ^ 1);
      if (has_terms) next_terms = query_terms(p, b, x.terms, next + thread);
    }
    if constexpr (Size::kHoldOwn) {
      if (first_tile) {
        first_tile = false;
        UNROLL
        for (int c = 0; c < kHeld; ++c) {
          Tile::first(held1[c], tiles.own1, own_row, 2 * c);
          Tile::first(held2[c], tiles.own2, own_row, 2 * c);
        }
      }
    }
    for (int step = 0; step < kWalked && walked + step < end; step += Size::kStep) {
      if (!warp_sees<kKeysOwn, Size::kStep>(p, b, b.begin + own_row, walked + step)) continue;
      float weight[4][4] = {}, ds[4][4] = {};
      product_over_columns<T, kDim, kSm80>(weight, held1, tiles.own1, own_row, walked1, step);
      if (need_ds)
        product_over_columns<T, kDim, kSm80>(ds, held2, tiles.own2, own_row, walked2, step);
      if (!sees.template all<Size::kStep>(p, b, walked + step)) {
        UNROLL
        for (int half = 0; half < 2; ++half) {
          const uint32_t seen = sees.row(p, b, half, walked + step) >> (2 * t);
          UNROLL
          for (int n = 0; n < 4; ++n) {
            UNROLL
            for (int e = 0; e < 2; ++e)
              if ((seen >> (8 * n + e) & 1) == 0)
                weight[n][2 * half + e] = -std::numeric_limits<float>::infinity();
          }
        }
      }
      uint32_t kept = ~0u;  // bit 4 n + e
      if (p.threshold > 0) {
        // One Philox call per thread, for 16 keys of one query: as owners the 16 rows of its warp,
        // as walked rows one of the two groups for one of the two rows that its four threads see.
        const uint32_t mine = kKeysOwn
                                  ? keep_bits(p, b, walked + step + lane, (b.begin + own_row) / 16)
                                  : keep_bits(p, b, b.begin + own_row + g + 8 * (t / 2),
                                              (walked + step) / 16 + t % 2);
        kept = 0;
        UNROLL
        for (int n = 0; n < 4; ++n) {
          UNROLL
          for (int e = 0; e < 4; ++e) {
            const int from = kKeysOwn ? 8 * n + 2 * t + e % 2 : (lane & ~3) | (2 * (e / 2) + n / 2);
            const int bit = kKeysOwn ? g + 8 * (e / 2) : n % 2 * 8 + 2 * t + e % 2;
            kept |= (gpu::shuffle(mine, from) >> bit & 1) << (4 * n + e);
          }
        }
      }
      UNROLL
      for (int n = 0; n < 4; ++n) {
        UNROLL
        for (int e = 0; e < 4; ++e) {
          const int column = step + 8 * n + 2 * t + e % 2;
          const QueryTerms terms = kKeysOwn ? QueryTerms{tiles.lse[stage * kWalked + column],
                                                         tiles.delta[stage * kWalked + column]}
                                            : own_terms[e / 2];
          const float probability = gpu::exp2_fast(fmaf(weight[n][e], scale_log2, -terms.lse));
          const bool keep = kept >> (4 * n + e) & 1;
          ds[n][e] = probability * ((keep ? ds[n][e] * p.kept : 0) - terms.delta);
          weight[n][e] = keep ? probability : 0;
        }
      }
      if (need_ds) accumulate_rows<T, kDim, kSm80>(sum1, ds, walked1, step);
      if constexpr (kKeysOwn) {
        if (need_dv) accumulate_rows<T, kDim, kSm80>(sum2, weight, walked2, step);
      }
    }
    if (has_terms && more) put_terms(stage ^ 1, next_terms);
  }

  const float scale[2] = {p.scale, p.scale}, kept[2] = {p.kept, p.kept};
  if constexpr (kKeysOwn) {
    const KeySums<T> out(p, b, x);
    if (out.dk)
      store_fragments<T, kDim>(tiles.own1, own_row, sum1, scale, out.dk, p, own.begin, own.rows);
    if (out.dv)
      store_fragments<T, kDim>(tiles.own2, own_row, sum2, kept, out.dv, p, own.begin, own.rows);
    if (out.prefix_dk) store_sums<kDim>(sum1, p.scale, out.prefix_dk, p, own.begin + own_row);
    if (out.prefix_dv) store_sums<kDim>(sum2, p.kept, out.prefix_dv, p, own.begin + own_row);
  } else {
    store_fragments<T, kDim>(tiles.own1, own_row, sum1, scale,
                             x.dq + b.first_query * p.stride() + b.head * p.head_dim, p, own.begin,
                             own.rows);
  }
}

// sums [rows, heads * head_dim] += parts [cells, heads, rows, head_dim], the cells in order, for k
// (blockIdx.y = 0) and v (1) of the prefix. A thread owns an element; neighbours read neighbours.
constexpr int kCellsThreads = 128;
__global__ void __launch_bounds__(kCellsThreads)
    attention_add_cells_kernel(AttentionProblem p, const float* parts_k, const float* parts_v,
                               float* dk, float* dv) {
  const float* parts = blockIdx.y == 0 ? parts_k : parts_v;
  float* sums = blockIdx.y == 0 ? dk : dv;
  const int64_t at = int64_t{blockIdx.x} * kCellsThreads + threadIdx.x;
  if (sums == nullptr || at >= p.prefix_rows * p.stride()) return;
  const int64_t row = at / p.stride(), head = at % p.stride() / p.head_dim;
  const float* part = parts + (head * p.prefix_rows + row) * p.head_dim + at % p.head_dim;
  float total = sums[at];
  for (int64_t cell = 0; cell < p.keys.cells; ++cell)
    total += part[cell * p.prefix_rows * p.stride()];
  sums[at] = total;
}

template <class T, bool kKeysOwn>
void launch_backward(Context& ctx, AttentionProblem p, const AttentionSizes& sizes,
                     const BackwardTensors<T>& x) {
  const char* op = "attention_backward";
  const auto set_tiles = [&](int rows) {
    p.prefix_tiles = 0;
    p.tiles = sizes.query_tiles(rows);
    if constexpr (kKeysOwn) {
      if (x.prefix_dk || x.prefix_dv) p.prefix_tiles = static_cast<int32_t>(kPrefixRows) / rows;
      p.tiles = p.prefix_tiles + (x.dk || x.dv ? sizes.key_tiles(rows) : 0);
    }
  };
  visit_attention_kernel<T>(
      ctx, p,
      [&]<int kDim, bool kSm80>(Fragments<kDim, kSm80>) {
        set_tiles(FragmentShape<kDim>::kOwn);
        launch(ctx, op, attention_backward_fragments_kernel<T, kDim, kKeysOwn, kSm80>,
               sizes.grid(p), kFragmentThreads, shared_bytes<FragmentShared<T, kDim>>(), p, x);
      },
      [&]<int kDim>(Rows<kDim>) {
        set_tiles(RowsShape<kDim>::kOwn);
        launch(ctx, op, attention_backward_rows_kernel<T, kDim, kKeysOwn>, sizes.grid(p),
               RowsShape<kDim>::kThreads, shared_bytes<RowsShared<kDim>>(), p, x);
      });
}

}  // namespace

void attention_backward(Context& ctx, ConstTensorView q, ConstTensorView k, ConstTensorView v,
                        ConstTensorView o, ConstTensorView lse, ConstTensorView dout,
                        const Packing& queries, const Packing& keys, int64_t heads, Dropout dropout,
                        TensorView dq, TensorView dk, TensorView dv, const AttentionMask& mask,
                        const AttentionPrefix& prefix, const AttentionPrefixGradient& dprefix) {
  const char* op = "attention_backward";
  const AttentionProblem p =
      attention_problem(op, ctx, queries, keys, heads, q.dim(1) / heads, dropout, ctx.random(),
                        mask, prefix, {q, k, v, prefix.k, prefix.v, o, dout, dq, dk, dv});
  const AttentionSizes sizes(queries, keys, heads);
  Arena::Scope scratch(ctx.scratch());
  visit_attention(q.dtype(), [&]<class T>(Type<T>) {
    BackwardTensors<T> x{};
    x.q = q.as<T>();
    x.k = k.as<T>();
    x.v = v.as<T>();
    x.dout = dout.as<T>();
    x.dq = data_or_null<T>(dq);
    x.dk = data_or_null<T>(dk);
    x.dv = data_or_null<T>(dv);
    x.prefix_k = data_or_null<T>(prefix.k);
    x.prefix_v = data_or_null<T>(prefix.v);
    const Shape parts{keys.cells() * heads, prefix.rows(), p.head_dim};
    if (!dprefix.k.empty()) x.prefix_dk = scratch.take(parts, DType::f32).template as<float>();
    if (!dprefix.v.empty()) x.prefix_dv = scratch.take(parts, DType::f32).template as<float>();
    const int64_t tokens = queries.tokens();
    float* terms = scratch.take(Shape{2, heads, tokens}, DType::f32).template as<float>();
    x.terms = terms;
    launch(ctx, op, attention_terms_kernel<T>,
           {.x = (tokens + kTermsWarps - 1) / kTermsWarps * heads}, kTermsWarps * gpu::kWarp, 0, p,
           o.as<T>(), dout.as<T>(), lse.as<float>(), terms);
    if (x.dq) launch_backward<T, false>(ctx, p, sizes, x);
    if (x.dk || x.dv || dprefix.wanted()) launch_backward<T, true>(ctx, p, sizes, x);
    if (dprefix.wanted())
      launch(ctx, op, attention_add_cells_kernel,
             {.x = (prefix.rows() * q.dim(1) + kCellsThreads - 1) / kCellsThreads, .y = 2},
             kCellsThreads, 0, p, x.prefix_dk, x.prefix_dv, data_or_null<float>(dprefix.k),
             data_or_null<float>(dprefix.v));
  });
}

}  // namespace scgraft::cuda
