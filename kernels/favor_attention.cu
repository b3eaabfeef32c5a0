// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/attention_device.cuh"
#include "kernels/attention_launch.cuh"
#include "kernels/favor_attention.h"
#include "kernels/favor_attention_simd.h"
#include "kernels/require_tensor.h"
#include "kernels/rows.cuh"

// Floor, per head of n tokens and M features: 4 products of 2 n M head_dim operations forward and 8
// backward, beside 4 and 8 tensors of n head_dim elements: M or more operations per element moved,
// so that f32 arithmetic bounds every kernel here that has products. A cell of scBERT (n 16,907, 10
// heads of 64, M 266) has 23 GFLOP and 173 MB forward, 46 GFLOP and 346 MB backward per layer, in
// f32. No feature is stored: the backward pass forms u of the queries three times, which makes its
// products 10.
//
// Features, and what is summed over tokens, stay f32 in all storage types.
//
// Every product is one of a tile of own rows, held for the whole block, with tiles of walked rows,
// as in f32 attention: tokens own and features are walked where every token owns its result,
// features own and tokens are walked where sums over tokens are formed. u is kept in units of log2.
namespace scgraft::cuda {
namespace {

constexpr float kFloor = static_cast<float>(kFavorFloor);
constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();

// One call as every block sees it.
struct FavorProblem {
  PackedRows tokens;
  int64_t heads;
  int32_t head_dim;
  int32_t features;
  int32_t spans;        // of a cell: enough for the longest
  int32_t token_tiles;  // of a cell, likewise
  int32_t feature_tiles;
  float factor;           // head_dim^(-1/4)
  bool tokens_aligned;    // all tensors [tokens, heads * head_dim], to 16 bytes
  bool features_aligned;  // all [features, head_dim]
  bool whole_batch;       // FavorStabiliser::batch

  __device__ int64_t stride() const { return heads * head_dim; }
  __device__ int64_t area() const { return int64_t{features} * head_dim; }
  __device__ float factor_log2() const { return factor * kLog2E; }
  // How tiles find their rows: one head of the tokens, or a matrix [features, head_dim].
  __device__ AttentionProblem token_rows() const {
    AttentionProblem rows{};
    rows.heads = heads;
    rows.head_dim = head_dim;
    rows.aligned = tokens_aligned;
    return rows;
  }
  __device__ AttentionProblem feature_rows() const {
    AttentionProblem rows{};
    rows.heads = 1;
    rows.head_dim = head_dim;
    rows.aligned = features_aligned;
    return rows;
  }
};

template <int kDim>
struct Tiles {
  static constexpr int kOwn = kDim <= 64 ? 64 : 32;  // four tiles within the 64 KiB of sm_75
  static constexpr int kWalked = kOwn / 2;
  static constexpr int kColumns = kWalked / 8;
  static constexpr int kThreads = 2 * kOwn;
  static constexpr int kWarps = kThreads / gpu::kWarp;
  static constexpr int kColumnsOfThread = (kDim + kThreads - 1) / kThreads;
  using Own = RowTile<kOwn, kDim>;
  using Walked = RowTile<kWalked, kDim>;
  using Weights = WeightTile<kColumns>;
};

template <int kDim>
struct Shared {
  using Size = Tiles<kDim>;
  float *own1, *own2, *walked1, *walked2, *weights;
  float *terms1, *terms2, *terms3;  // [kWalked], of walked rows
  SCGRAFT_HD explicit Shared(gpu::SharedCarver& carve, bool two)
      : own1(carve.take<float>(Size::Own::kSize)),
        own2(carve.take<float>(two ? Size::Own::kSize : 0)),
        walked1(carve.take<float>(Size::Walked::kSize)),
        walked2(carve.take<float>(Size::Walked::kSize)),
        weights(carve.take<float>(Size::kOwn * Size::Weights::kStride)),
        terms1(carve.take<float>(Size::kWalked)),
        terms2(carve.take<float>(Size::kWalked)),
        terms3(carve.take<float>(Size::kWalked)) {}
};

template <int kDim>
int64_t shared_bytes_of(bool two) {
  gpu::SharedCarver carve(nullptr);
  const Shared<kDim> shared(carve, two);
  static_cast<void>(shared);
  return carve.used();
}

// Where a block of a grid over (cell, head, tile of tokens) works.
struct TokenBlock {
  int32_t cell, head, tile;
  int32_t first;   // packed row of the cell
  int32_t tokens;  // of the cell
  int32_t begin;   // of the tile, within the cell
  int64_t unit;    // cell * heads + head

  __device__ TokenBlock(const FavorProblem& p, int rows) {
    unit = blockIdx.x / static_cast<uint32_t>(p.token_tiles);
    tile = static_cast<int32_t>(blockIdx.x % static_cast<uint32_t>(p.token_tiles));
    cell = static_cast<int32_t>(unit / p.heads);
    head = static_cast<int32_t>(unit % p.heads);
    first = p.tokens.offsets[cell];
    tokens = p.tokens.offsets[cell + 1] - first;
    begin = tile * rows;
  }
  __device__ bool empty() const { return begin >= tokens; }
  // Offset of the first element of the cell and head.
  __device__ int64_t at(const FavorProblem& p) const {
    return first * p.stride() + head * p.head_dim;
  }
};

// Where a block of a grid over (cell, head, span, tile of features) works.
struct FeatureBlock {
  int32_t cell, head, span, tile;
  int32_t first, begin, end;  // tokens of the span: [begin, end) of the cell that begins at `first`
  int32_t feature;            // the first one
  int64_t unit;               // cell * heads + head
  int64_t part;               // unit * spans + span

  __device__ FeatureBlock(const FavorProblem& p, int rows) {
    part = blockIdx.x / static_cast<uint32_t>(p.feature_tiles);
    tile = static_cast<int32_t>(blockIdx.x % static_cast<uint32_t>(p.feature_tiles));
    unit = part / p.spans;
    span = static_cast<int32_t>(part % p.spans);
    cell = static_cast<int32_t>(unit / p.heads);
    head = static_cast<int32_t>(unit % p.heads);
    first = p.tokens.offsets[cell];
    const int32_t tokens = p.tokens.offsets[cell + 1] - first;
    begin = span * static_cast<int32_t>(kFavorSpan);
    end = begin + static_cast<int32_t>(kFavorSpan) < tokens
              ? begin + static_cast<int32_t>(kFavorSpan)
              : tokens;
    feature = tile * rows;
  }
  __device__ bool empty() const { return begin >= end; }
  __device__ int64_t at(const FavorProblem& p) const {
    return first * p.stride() + head * p.head_dim;
  }
};

// Over the eight threads that share rows.
__device__ __forceinline__ float group_sum(float v) {
  UNROLL
  for (int mask = 4; mask > 0; mask /= 2) v += gpu::shuffle_xor(v, mask);
  return v;
}
__device__ __forceinline__ float group_max(float v) {
  UNROLL
  for (int mask = 4; mask > 0; mask /= 2) v = fmaxf(v, gpu::shuffle_xor(v, mask));
  return v;
}

// s(x) of the thread's own rows in units of log2: |c x|^2 / 2.
template <int kDim>
__device__ void own_halves(const FavorProblem& p, const float* own, float (&half)[4]) {
  UNROLL
  for (int i = 0; i < 4; ++i) {
    float sum = 0;
    UNROLL
    for (int n = 0; n < kDim / 32; ++n) {
      const auto x = gpu::load_vec<gpu::F4>(own + micro_row(i) * RowTile<1, kDim>::kStride +
                                            4 * micro_column(n));
      sum = dot4(x, x, sum);
    }
    half[i] = group_sum(sum) * (0.5f * p.factor * p.factor_log2());
  }
}
// The same of one walked row.
template <int kDim>
__device__ float walked_half(const FavorProblem& p, const float* walked, int row) {
  float sum = 0;
  KEEP_LOOP
  for (int d = 0; d < kDim; d += 4) {
    const auto x = gpu::load_vec<gpu::F4>(walked + row * RowTile<1, kDim>::kStride + d);
    sum = dot4(x, x, sum);
  }
  return sum * (0.5f * p.factor * p.factor_log2());
}

// Adds the walked rows to sums of their columns; thread t has the columns t + kThreads n.
template <int kDim>
__device__ void add_columns(const float* walked, float (&columns)[Tiles<kDim>::kColumnsOfThread]) {
  using Size = Tiles<kDim>;
  UNROLL
  for (int n = 0; n < Size::kColumnsOfThread; ++n) {
    const int column = static_cast<int>(threadIdx.x) + n * Size::kThreads;
    if (column >= kDim) continue;
    KEEP_LOOP
    for (int row = 0; row < Size::kWalked; ++row)
      columns[n] += walked[row * Size::Walked::kStride + column];
  }
}

// Sums over keys.

// What blocks leave of every part (cell, head, span). Of keys: sums without the floor, feature by
// feature with a shift of its own, and what else the context is made of. Of the gradient of the
// context: its sums and mass as they are.
struct SpanParts {
  float* sums;    // [parts, features, head_dim]
  float* mass;    // [parts, features]
  float* shift;   // [parts, features], the largest u - s(k), in units of log2
  float* values;  // [parts, head_dim], the sum of v
  float* peak;    // [parts, feature tiles], the largest u
  int64_t* at;    // [parts, feature tiles], where (FavorContext::peak)
};

// A candidate for the stabiliser; the first in the order of FavorContext::peak wins among equals.
struct Largest {
  float value = kNegativeInfinity;
  int32_t token = 0x7fffffff;
  int32_t feature = 0x7fffffff;

  __device__ void take(float v, int32_t t, int32_t f) {
    const bool first = t < token || (t == token && f < feature);
    if (v > value || (v == value && first)) value = v, token = t, feature = f;
  }
};

// A block owns kOwn features of one (cell, head, span) and walks its keys. Reads k and v once per
// tile of features, mostly from L2; bound by f32 multiply-adds (two products).
template <class T, int kDim>
__global__ void __launch_bounds__(Tiles<kDim>::kThreads, 2)
    favor_keys_kernel(FavorProblem p, const T* k, const T* v, const float* projection,
                      SpanParts parts) {
  using Size = Tiles<kDim>;
  const FeatureBlock b(p, Size::kOwn);
  if (b.empty()) return;
  gpu::SharedCarver carve(gpu::shared_memory());
  const Shared<kDim> tiles(carve, false);
  Size::Own::load(tiles.own1, projection, p.feature_rows(), b.feature, p.features);

  Largest largest;
  float shift[4], mass[4] = {};
  UNROLL
  for (int i = 0; i < 4; ++i) shift[i] = kNegativeInfinity;
  gpu::F4 sum[4][kDim / 32] = {};
  float columns[Size::kColumnsOfThread] = {};
  for (int key = b.begin; key < b.end; key += Size::kWalked) {
    gpu::sync_block();  // nobody still reads the tiles before
    Size::Walked::load(tiles.walked1, k + b.at(p), p.token_rows(), key, b.end);
    Size::Walked::load(tiles.walked2, v + b.at(p), p.token_rows(), key, b.end);
    gpu::sync_block();
    if (threadIdx.x < Size::kWalked)
      tiles.terms1[threadIdx.x] =
          walked_half<kDim>(p, tiles.walked1, static_cast<int>(threadIdx.x));
    if (b.tile == 0) add_columns<kDim>(tiles.walked2, columns);
    gpu::sync_block();
    float w[4][Size::kColumns];
    micro_product<kDim>(tiles.own1, tiles.walked1, w);
    UNROLL
    for (int i = 0; i < 4; ++i) {
      const int feature = b.feature + micro_row(i);
      float top = kNegativeInfinity;
      UNROLL
      for (int j = 0; j < Size::kColumns; ++j) {
        const int token = key + micro_column(j);
        const bool valid = token < b.end;
        if (valid && feature < p.features) largest.take(w[i][j] * p.factor, token, feature);
        w[i][j] = valid ? fmaf(w[i][j], p.factor_log2(), -tiles.terms1[micro_column(j)])
                        : kNegativeInfinity;
        top = fmaxf(top, w[i][j]);
      }
      const float before = shift[i];
      shift[i] = fmaxf(shift[i], group_max(top));
      const float faded = gpu::exp2_fast(before - shift[i]);
      mass[i] *= faded;
      UNROLL
      for (int n = 0; n < kDim / 32; ++n) sum[i][n] = scaled(sum[i][n], faded);
      UNROLL
      for (int j = 0; j < Size::kColumns; ++j) {
        w[i][j] = gpu::exp2_fast(w[i][j] - shift[i]);
        mass[i] += w[i][j];
      }
    }
    Size::Weights::put(tiles.weights, w);
    Size::Weights::template accumulate<kDim>(tiles.weights, tiles.walked2, sum);
  }

  UNROLL
  for (int i = 0; i < 4; ++i) {
    mass[i] = group_sum(mass[i]);
    const int feature = b.feature + micro_row(i);
    if (feature >= p.features) continue;
    const int64_t row = b.part * p.features + feature;
    UNROLL
    for (int n = 0; n < kDim / 32; ++n)
      store_columns(parts.sums + row * p.head_dim, 4 * micro_column(n), sum[i][n],
                    p.feature_rows());
    if (gpu::lane() % 8 == 0) {
      parts.mass[row] = mass[i];
      parts.shift[row] = shift[i];
    }
  }
  if (b.tile == 0) {
    UNROLL
    for (int n = 0; n < Size::kColumnsOfThread; ++n) {
      const int column = static_cast<int>(threadIdx.x) + n * Size::kThreads;
      if (column < p.head_dim) parts.values[b.part * p.head_dim + column] = columns[n];
    }
  }
  UNROLL
  for (int mask = gpu::kWarp / 2; mask > 0; mask /= 2) {
    const float value = gpu::shuffle_xor(largest.value, mask);
    const int32_t token = gpu::shuffle_xor(largest.token, mask);
    const int32_t feature = gpu::shuffle_xor(largest.feature, mask);
    largest.take(value, token, feature);
  }
  gpu::sync_block();  // nobody still reads the walked terms and weights
  auto* warp_tokens = reinterpret_cast<int32_t*>(tiles.terms2);
  auto* warp_features = reinterpret_cast<int32_t*>(tiles.terms3);
  if (gpu::lane() == 0) {
    tiles.terms1[gpu::warp()] = largest.value;
    warp_tokens[gpu::warp()] = largest.token;
    warp_features[gpu::warp()] = largest.feature;
  }
  gpu::sync_block();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < Size::kWarps; ++w)
    largest.take(tiles.terms1[w], warp_tokens[w], warp_features[w]);
  // Where every u is NaN there is no largest one, but the gradient needs a place.
  if (largest.token > b.end) largest.token = b.begin, largest.feature = b.feature;
  const int64_t index = b.part * p.feature_tiles + b.tile;
  parts.peak[index] = largest.value;
  parts.at[index] = (largest.token * p.heads + b.head) * p.features + largest.feature;
}

constexpr int kCellThreads = 128;

// A block owns a cell: the largest of its parts and where it is. A few kilobytes; latency.
__global__ void __launch_bounds__(kCellThreads)
    favor_stabiliser_kernel(FavorProblem p, SpanParts parts, float* largest, int64_t* peak) {
  const int64_t cell = blockIdx.x;
  const int32_t tokens = p.tokens.offsets[cell + 1] - p.tokens.offsets[cell];
  const auto spans =
      (tokens + static_cast<int32_t>(kFavorSpan) - 1) / static_cast<int32_t>(kFavorSpan);
  gpu::SharedCarver carve(gpu::shared_memory());
  float* values = carve.take<float>(kCellThreads);
  int64_t* places = carve.take<int64_t>(kCellThreads);
  float best = kNegativeInfinity;
  int64_t best_at = -1;
  const auto take = [&](float value, int64_t at) {
    if (at < 0) return;
    if (best_at < 0 || value > best || (value == best && at < best_at)) best = value, best_at = at;
  };
  const int64_t of_span = p.feature_tiles;
  const int64_t of_head = spans * of_span;
  for (int64_t i = threadIdx.x; i < p.heads * of_head; i += kCellThreads) {
    const int64_t part = (cell * p.heads + i / of_head) * p.spans + i % of_head / of_span;
    const int64_t index = part * of_span + i % of_span;
    take(parts.peak[index], parts.at[index]);
  }
  values[threadIdx.x] = best;
  places[threadIdx.x] = best_at;
  gpu::sync_block();
  if (threadIdx.x != 0) return;
  for (int i = 1; i < kCellThreads; ++i) take(values[i], places[i]);
  largest[cell] = best;
  peak[cell] = best_at;
}

// One thread for the whole batch, which is as many steps as there are cells.
__global__ void __launch_bounds__(gpu::kWarp)
    favor_batch_stabiliser_kernel(int64_t cells, float* largest, int64_t* peak) {
  if (threadIdx.x != 0) return;
  int64_t owner = -1;
  for (int64_t cell = 0; cell < cells; ++cell)
    if (peak[cell] >= 0 && (owner < 0 || largest[cell] > largest[owner])) owner = cell;
  if (owner < 0) return;
  const float value = largest[owner];
  for (int64_t cell = 0; cell < cells; ++cell) {
    largest[cell] = value;
    if (cell != owner) peak[cell] = -1;
  }
}

constexpr int kElementThreads = 256;

// A thread owns an element of [features, head_dim] of a (cell, head) and adds its spans in order:
// with kKeys those of keys, brought to the stabiliser and with the floor, else those of a
// gradient as they are. Reads every part once; that bounds it.
template <bool kKeys>
__global__ void __launch_bounds__(kElementThreads)
    favor_spans_kernel(FavorProblem p, SpanParts parts, const float* largest, float* sums,
                       float* mass) {
  const int64_t unit = blockIdx.x;
  const int64_t element = int64_t{blockIdx.y} * kElementThreads + threadIdx.x;
  if (element >= p.area()) return;
  const int64_t cell = unit / p.heads;
  const int32_t tokens = p.tokens.offsets[cell + 1] - p.tokens.offsets[cell];
  const auto spans =
      (tokens + static_cast<int32_t>(kFavorSpan) - 1) / static_cast<int32_t>(kFavorSpan);
  const int64_t feature = element / p.head_dim, column = element % p.head_dim;
  const float stabiliser = kKeys ? largest[cell] * kLog2E : 0;
  float sum = 0;
  float weight = kKeys ? kFloor * static_cast<float>(tokens) : 0;
  for (int64_t part = unit * p.spans; part < unit * p.spans + spans; ++part) {
    const int64_t row = part * p.features + feature;
    float factor = 1;
    if constexpr (kKeys) {
      factor = gpu::exp2_fast(parts.shift[row] - stabiliser);
      sum += kFloor * parts.values[part * p.head_dim + column];
    }
    sum += factor * parts.sums[row * p.head_dim + column];
    weight += factor * parts.mass[row];
  }
  sums[unit * p.area() + element] = sum;
  if (column == 0) mass[unit * p.features + feature] = weight;
}

// Queries.

// The largest u of a query so far, in units of log2, and the sums that it is the shift of.
struct RunningLargest {
  float value = kNegativeInfinity;
  float mass = 0;  // of the thread's columns

  // Takes the largest of the next tile; returns what to multiply earlier sums with.
  __device__ float raise(float tile) {
    const float before = value;
    value = fmaxf(value, tile);
    const float faded = gpu::exp2_fast(before - value);
    mass *= faded;
    return faded;
  }
};

// A block owns kOwn queries of one (cell, head) and walks the features. Reads q once and the
// context of the head once per block, from L2; bound by f32 multiply-adds (two products).
template <class T, int kDim>
__global__ void __launch_bounds__(Tiles<kDim>::kThreads, 2)
    favor_queries_kernel(FavorProblem p, const T* q, const float* projection, const float* sums,
                         const float* mass, T* out) {
  using Size = Tiles<kDim>;
  const TokenBlock b(p, Size::kOwn);
  if (b.empty()) return;
  gpu::SharedCarver carve(gpu::shared_memory());
  const Shared<kDim> tiles(carve, false);
  Size::Own::load(tiles.own1, q + b.at(p), p.token_rows(), b.begin, b.tokens);
  sums += b.unit * p.area();
  mass += b.unit * p.features;

  RunningLargest largest[4];
  gpu::F4 sum[4][kDim / 32] = {};
  float columns[Size::kColumnsOfThread] = {};
  float all_mass = 0;
  for (int feature = 0; feature < p.features; feature += Size::kWalked) {
    gpu::sync_block();  // nobody still reads the tiles before
    Size::Walked::load(tiles.walked1, projection, p.feature_rows(), feature, p.features);
    Size::Walked::load(tiles.walked2, sums, p.feature_rows(), feature, p.features);
    if (threadIdx.x < Size::kWalked) {
      const int j = feature + static_cast<int>(threadIdx.x);
      tiles.terms1[threadIdx.x] = j < p.features ? mass[j] : 0;
    }
    gpu::sync_block();
    add_columns<kDim>(tiles.walked2, columns);
    UNROLL
    for (int j = 0; j < Size::kColumns; ++j) all_mass += tiles.terms1[micro_column(j)];
    float w[4][Size::kColumns];
    micro_product<kDim>(tiles.own1, tiles.walked1, w);
    UNROLL
    for (int i = 0; i < 4; ++i) {
      float top = kNegativeInfinity;
      UNROLL
      for (int j = 0; j < Size::kColumns; ++j) {
        const bool valid = feature + micro_column(j) < p.features;
        w[i][j] = valid ? w[i][j] * p.factor_log2() : kNegativeInfinity;
        top = fmaxf(top, w[i][j]);
      }
      const float faded = largest[i].raise(group_max(top));
      UNROLL
      for (int n = 0; n < kDim / 32; ++n) sum[i][n] = scaled(sum[i][n], faded);
      UNROLL
      for (int j = 0; j < Size::kColumns; ++j) {
        w[i][j] = gpu::exp2_fast(w[i][j] - largest[i].value);
        largest[i].mass += w[i][j] * tiles.terms1[micro_column(j)];
      }
    }
    Size::Weights::put(tiles.weights, w);
    Size::Weights::template accumulate<kDim>(tiles.weights, tiles.walked2, sum);
  }

  // psi = e exp(-s(q)) + floor: the floor meets the sums over all features.
  gpu::sync_block();  // nobody still reads the walked tiles
  UNROLL
  for (int n = 0; n < Size::kColumnsOfThread; ++n) {
    const int column = static_cast<int>(threadIdx.x) + n * Size::kThreads;
    if (column < kDim) tiles.walked1[column] = kFloor * columns[n];
  }
  gpu::sync_block();
  float half[4];
  own_halves<kDim>(p, tiles.own1, half);
  all_mass = group_sum(all_mass);
  UNROLL
  for (int i = 0; i < 4; ++i) {
    const float scale = gpu::exp2_fast(-half[i]);
    const float inverse = 1.0f / (scale * group_sum(largest[i].mass) + kFloor * all_mass);
    const int query = b.begin + micro_row(i);
    if (query >= b.tokens) continue;
    UNROLL
    for (int n = 0; n < kDim / 32; ++n) {
      const auto floor = gpu::load_vec<gpu::F4>(tiles.walked1 + 4 * micro_column(n));
      const gpu::F4 x = sum[i][n];
      store_columns(out + b.at(p) + query * p.stride(), 4 * micro_column(n),
                    gpu::F4{(scale * x.x + floor.x) * inverse, (scale * x.y + floor.y) * inverse,
                            (scale * x.z + floor.z) * inverse, (scale * x.w + floor.w) * inverse},
                    p.token_rows());
    }
  }
}

// Gradients.

// What the backward pass knows of a query, [heads, tokens] each.
struct QueryTerms {
  float* base;     // max_j u_j + s(q), in units of log2
  float* inverse;  // 1 / (psi(q) . mass)
  float* delta;    // dout . out * inverse
  int32_t* top;    // the feature of the maximum
};

// A block owns kOwn queries and walks the features for their terms; bound by f32 multiply-adds (one
// product).
template <class T, int kDim>
__global__ void __launch_bounds__(Tiles<kDim>::kThreads, 2)
    favor_terms_kernel(FavorProblem p, const T* q, const T* out, const T* dout,
                       const float* projection, const float* mass, QueryTerms terms) {
  using Size = Tiles<kDim>;
  const TokenBlock b(p, Size::kOwn);
  if (b.empty()) return;
  gpu::SharedCarver carve(gpu::shared_memory());
  const Shared<kDim> tiles(carve, false);
  Size::Own::load(tiles.own1, q + b.at(p), p.token_rows(), b.begin, b.tokens);
  mass += b.unit * p.features;

  RunningLargest largest[4];
  int32_t top_feature[4] = {};
  float all_mass = 0;
  for (int feature = 0; feature < p.features; feature += Size::kWalked) {
    gpu::sync_block();  // nobody still reads the tile before
    Size::Walked::load(tiles.walked1, projection, p.feature_rows(), feature, p.features);
    if (threadIdx.x < Size::kWalked) {
      const int j = feature + static_cast<int>(threadIdx.x);
      tiles.terms1[threadIdx.x] = j < p.features ? mass[j] : 0;
    }
    gpu::sync_block();
    UNROLL
    for (int j = 0; j < Size::kColumns; ++j) all_mass += tiles.terms1[micro_column(j)];
    float w[4][Size::kColumns];
    micro_product<kDim>(tiles.own1, tiles.walked1, w);
    UNROLL
    for (int i = 0; i < 4; ++i) {
      Largest top;
      UNROLL
      for (int j = 0; j < Size::kColumns; ++j) {
        const int at = feature + micro_column(j);
        w[i][j] = at < p.features ? w[i][j] * p.factor_log2() : kNegativeInfinity;
        top.take(w[i][j], 0, at);
      }
      UNROLL
      for (int mask = 4; mask > 0; mask /= 2) {
        const float value = gpu::shuffle_xor(top.value, mask);
        const int32_t at = gpu::shuffle_xor(top.feature, mask);
        top.take(value, 0, at);
      }
      if (top.value > largest[i].value) top_feature[i] = top.feature;
      largest[i].raise(top.value);
      UNROLL
      for (int j = 0; j < Size::kColumns; ++j)
        largest[i].mass +=
            gpu::exp2_fast(w[i][j] - largest[i].value) * tiles.terms1[micro_column(j)];
    }
  }

  float half[4];
  own_halves<kDim>(p, tiles.own1, half);
  all_mass = group_sum(all_mass);
  gpu::sync_block();  // every thread has read q
  // dout and out take the place of q and the walked rows, half of the own rows at a time.
  Size::Own::load(tiles.own1, dout + b.at(p), p.token_rows(), b.begin, b.tokens);
  UNROLL
  for (int part = 0; part < 2; ++part) {
    float* to = part == 0 ? tiles.walked1 : tiles.walked2;
    Size::Walked::load(to, out + b.at(p), p.token_rows(), b.begin + part * Size::kWalked, b.tokens);
  }
  gpu::sync_block();
  UNROLL
  for (int i = 0; i < 4; ++i) {
    const int row = micro_row(i);
    const float* of_out = (row < Size::kWalked ? tiles.walked1 : tiles.walked2) +
                          row % Size::kWalked * Size::Walked::kStride;
    float along = 0;
    UNROLL
    for (int n = 0; n < kDim / 32; ++n)
      along =
          dot4(gpu::load_vec<gpu::F4>(tiles.own1 + row * Size::Own::kStride + 4 * micro_column(n)),
               gpu::load_vec<gpu::F4>(of_out + 4 * micro_column(n)), along);
    along = group_sum(along);
    const float inverse =
        1.0f / (gpu::exp2_fast(-half[i]) * group_sum(largest[i].mass) + kFloor * all_mass);
    if (b.begin + row >= b.tokens || gpu::lane() % 8 != 0) continue;
    const int64_t at = b.head * p.tokens.tokens + b.first + b.begin + row;
    terms.base[at] = largest[i].value + half[i];
    terms.inverse[at] = inverse;
    terms.delta[at] = along * inverse;
    terms.top[at] = top_feature[i];
  }
}

// dsums and dmass of a span: a block owns kOwn features and walks the queries. Reads q and dout
// once per tile of features, mostly from L2; bound by f32 multiply-adds (two products).
template <class T, int kDim>
__global__ void __launch_bounds__(Tiles<kDim>::kThreads, 2)
    favor_context_gradient_kernel(FavorProblem p, const T* q, const T* dout,
                                  const float* projection, QueryTerms terms, SpanParts parts) {
  using Size = Tiles<kDim>;
  const FeatureBlock b(p, Size::kOwn);
  if (b.empty()) return;
  gpu::SharedCarver carve(gpu::shared_memory());
  const Shared<kDim> tiles(carve, false);
  Size::Own::load(tiles.own1, projection, p.feature_rows(), b.feature, p.features);

  float mass[4] = {};
  gpu::F4 sum[4][kDim / 32] = {};
  for (int query = b.begin; query < b.end; query += Size::kWalked) {
    gpu::sync_block();  // nobody still reads the tiles before
    Size::Walked::load(tiles.walked1, q + b.at(p), p.token_rows(), query, b.end);
    Size::Walked::load(tiles.walked2, dout + b.at(p), p.token_rows(), query, b.end);
    if (threadIdx.x < Size::kWalked) {
      const int row = query + static_cast<int>(threadIdx.x);
      const bool valid = row < b.end;
      const int64_t at = valid ? b.head * p.tokens.tokens + b.first + row : 0;
      tiles.terms1[threadIdx.x] = valid ? terms.base[at] : 0;
      tiles.terms2[threadIdx.x] = valid ? terms.inverse[at] : 0;
      tiles.terms3[threadIdx.x] = valid ? terms.delta[at] : 0;
    }
    gpu::sync_block();
    float w[4][Size::kColumns];
    micro_product<kDim>(tiles.own1, tiles.walked1, w);
    UNROLL
    for (int i = 0; i < 4; ++i) {
      UNROLL
      for (int j = 0; j < Size::kColumns; ++j) {
        const int row = micro_column(j);
        const float psi =
            gpu::exp2_fast(fmaf(w[i][j], p.factor_log2(), -tiles.terms1[row])) + kFloor;
        mass[i] -= psi * tiles.terms3[row];
        w[i][j] = psi * tiles.terms2[row];
      }
    }
    Size::Weights::put(tiles.weights, w);
    Size::Weights::template accumulate<kDim>(tiles.weights, tiles.walked2, sum);
  }
  UNROLL
  for (int i = 0; i < 4; ++i) {
    mass[i] = group_sum(mass[i]);
    const int feature = b.feature + micro_row(i);
    if (feature >= p.features) continue;
    const int64_t row = b.part * p.features + feature;
    UNROLL
    for (int n = 0; n < kDim / 32; ++n)
      store_columns(parts.sums + row * p.head_dim, 4 * micro_column(n), sum[i][n],
                    p.feature_rows());
    if (gpu::lane() % 8 == 0) parts.mass[row] = mass[i];
  }
}

// dx of the own rows from the sums of g Omega and of g: c (sum - total (c x)).
template <class T, int kDim>
__device__ void store_gradient(const FavorProblem& p, const float* own, int row, float total,
                               const gpu::F4 (&sum)[kDim / 32], T* dx) {
  UNROLL
  for (int n = 0; n < kDim / 32; ++n) {
    const auto x =
        gpu::load_vec<gpu::F4>(own + row * RowTile<1, kDim>::kStride + 4 * micro_column(n));
    const float along = total * p.factor;
    store_columns(dx, 4 * micro_column(n),
                  gpu::F4{p.factor * (sum[n].x - along * x.x), p.factor * (sum[n].y - along * x.y),
                          p.factor * (sum[n].z - along * x.z), p.factor * (sum[n].w - along * x.w)},
                  p.token_rows());
  }
}

// A block owns kOwn queries and walks the features; bound by f32 multiply-adds (three products).
template <class T, int kDim>
__global__ void __launch_bounds__(Tiles<kDim>::kThreads, 2)
    favor_query_gradient_kernel(FavorProblem p, const T* q, const T* dout, const float* projection,
                                const float* sums, const float* mass, QueryTerms terms, T* dq) {
  using Size = Tiles<kDim>;
  const TokenBlock b(p, Size::kOwn);
  if (b.empty()) return;
  gpu::SharedCarver carve(gpu::shared_memory());
  const Shared<kDim> tiles(carve, true);
  Size::Own::load(tiles.own1, q + b.at(p), p.token_rows(), b.begin, b.tokens);
  Size::Own::load(tiles.own2, dout + b.at(p), p.token_rows(), b.begin, b.tokens);
  sums += b.unit * p.area();
  mass += b.unit * p.features;

  float base[4] = {}, inverse[4] = {}, delta[4] = {}, total[4] = {};
  UNROLL
  for (int i = 0; i < 4; ++i) {
    const int query = b.begin + micro_row(i);
    if (query >= b.tokens) continue;
    const int64_t at = b.head * p.tokens.tokens + b.first + query;
    base[i] = terms.base[at];
    inverse[i] = terms.inverse[at];
    delta[i] = terms.delta[at];
  }
  gpu::F4 sum[4][kDim / 32] = {};
  for (int feature = 0; feature < p.features; feature += Size::kWalked) {
    gpu::sync_block();  // nobody still reads the tiles before
    Size::Walked::load(tiles.walked1, projection, p.feature_rows(), feature, p.features);
    Size::Walked::load(tiles.walked2, sums, p.feature_rows(), feature, p.features);
    if (threadIdx.x < Size::kWalked) {
      const int j = feature + static_cast<int>(threadIdx.x);
      tiles.terms1[threadIdx.x] = j < p.features ? mass[j] : 0;
    }
    gpu::sync_block();
    float g[4][Size::kColumns], dpsi[4][Size::kColumns];
    micro_product<kDim>(tiles.own1, tiles.walked1, g);
    micro_product<kDim>(tiles.own2, tiles.walked2, dpsi);
    UNROLL
    for (int i = 0; i < 4; ++i) {
      UNROLL
      for (int j = 0; j < Size::kColumns; ++j) {
        // Behind the last feature the sums and the mass are zeros, and so is g.
        const float e = gpu::exp2_fast(fmaf(g[i][j], p.factor_log2(), -base[i]));
        g[i][j] = e * (dpsi[i][j] * inverse[i] - delta[i] * tiles.terms1[micro_column(j)]);
        total[i] += g[i][j];
      }
    }
    Size::Weights::put(tiles.weights, g);
    Size::Weights::template accumulate<kDim>(tiles.weights, tiles.walked1, sum);
  }
  UNROLL
  for (int i = 0; i < 4; ++i) {
    total[i] = group_sum(total[i]);
    const int row = micro_row(i), query = b.begin + row;
    if (query >= b.tokens) continue;
    // The gradient of the maximum: minus the total at its feature.
    const int64_t top = terms.top[b.head * p.tokens.tokens + b.first + query];
    UNROLL
    for (int n = 0; n < kDim / 32; ++n) {
      const int column = 4 * micro_column(n);
      const float* direction = projection + top * p.head_dim + column;
      if (column < p.head_dim) sum[i][n].x -= total[i] * direction[0];
      if (column + 1 < p.head_dim) sum[i][n].y -= total[i] * direction[1];
      if (column + 2 < p.head_dim) sum[i][n].z -= total[i] * direction[2];
      if (column + 3 < p.head_dim) sum[i][n].w -= total[i] * direction[3];
    }
    store_gradient<T, kDim>(p, tiles.own1, row, total[i], sum[i],
                            dq + b.at(p) + query * p.stride());
  }
}

// A block owns kOwn keys and walks the features; bound by f32 multiply-adds (two products and one
// for each of dk and dv). totals [cells, heads, token tiles]: the sum of g over the block.
template <class T, int kDim>
__global__ void __launch_bounds__(Tiles<kDim>::kThreads, 2)
    favor_key_gradient_kernel(FavorProblem p, const T* k, const T* v, const float* projection,
                              const float* largest, const float* dsums, const float* dmass, T* dk,
                              T* dv, float* totals) {
  using Size = Tiles<kDim>;
  const TokenBlock b(p, Size::kOwn);
  if (b.empty()) return;
  gpu::SharedCarver carve(gpu::shared_memory());
  const Shared<kDim> tiles(carve, true);
  Size::Own::load(tiles.own1, k + b.at(p), p.token_rows(), b.begin, b.tokens);
  Size::Own::load(tiles.own2, v + b.at(p), p.token_rows(), b.begin, b.tokens);
  dsums += b.unit * p.area();
  dmass += b.unit * p.features;
  gpu::sync_block();
  float base[4], total[4] = {};
  own_halves<kDim>(p, tiles.own1, base);
  UNROLL
  for (int i = 0; i < 4; ++i) base[i] += largest[b.cell] * kLog2E;

  gpu::F4 sum_k[4][kDim / 32] = {}, sum_v[4][kDim / 32] = {};
  for (int feature = 0; feature < p.features; feature += Size::kWalked) {
    gpu::sync_block();  // nobody still reads the tiles before
    Size::Walked::load(tiles.walked1, projection, p.feature_rows(), feature, p.features);
    Size::Walked::load(tiles.walked2, dsums, p.feature_rows(), feature, p.features);
    if (threadIdx.x < Size::kWalked) {
      const int j = feature + static_cast<int>(threadIdx.x);
      tiles.terms1[threadIdx.x] = j < p.features ? dmass[j] : 0;
    }
    gpu::sync_block();
    float e[4][Size::kColumns];
    micro_product<kDim>(tiles.own1, tiles.walked1, e);
    UNROLL
    for (int i = 0; i < 4; ++i) {
      UNROLL
      for (int j = 0; j < Size::kColumns; ++j)
        e[i][j] = gpu::exp2_fast(fmaf(e[i][j], p.factor_log2(), -base[i]));
    }
    if (dk) {
      float g[4][Size::kColumns];
      micro_product<kDim>(tiles.own2, tiles.walked2, g);
      UNROLL
      for (int i = 0; i < 4; ++i) {
        UNROLL
        for (int j = 0; j < Size::kColumns; ++j) {
          // Behind the last feature the gradients are zeros, and so is g.
          g[i][j] = e[i][j] * (g[i][j] + tiles.terms1[micro_column(j)]);
          total[i] += g[i][j];
        }
      }
      Size::Weights::put(tiles.weights, g);
      Size::Weights::template accumulate<kDim>(tiles.weights, tiles.walked1, sum_k);
    }
    if (dv) {
      UNROLL
      for (int i = 0; i < 4; ++i) {
        UNROLL
        for (int j = 0; j < Size::kColumns; ++j) e[i][j] += kFloor;
      }
      Size::Weights::put(tiles.weights, e);
      Size::Weights::template accumulate<kDim>(tiles.weights, tiles.walked2, sum_v);
    }
  }
  float all = 0;
  UNROLL
  for (int i = 0; i < 4; ++i) {
    total[i] = group_sum(total[i]);
    const int row = micro_row(i), key = b.begin + row;
    if (key >= b.tokens) continue;
    all += total[i];
    if (dk)
      store_gradient<T, kDim>(p, tiles.own1, row, total[i], sum_k[i],
                              dk + b.at(p) + key * p.stride());
    if (dv) {
      UNROLL
      for (int n = 0; n < kDim / 32; ++n)
        store_columns(dv + b.at(p) + key * p.stride(), 4 * micro_column(n), sum_v[i][n],
                      p.token_rows());
    }
  }
  if (!dk) return;
  gpu::sync_block();  // nobody still reads the terms
  all = block_sum(gpu::lane() % 8 == 0 ? all : 0, tiles.terms1);
  if (threadIdx.x == 0) totals[b.unit * p.token_tiles + b.tile] = all;
}

// A block owns a cell: cell_totals[cell] is the sum of g over its keys, in an order that depends on
// its length alone.
__global__ void __launch_bounds__(kCellThreads)
    favor_totals_kernel(FavorProblem p, int tile_rows, const float* totals, float* cell_totals) {
  const int64_t cell = blockIdx.x;
  const int32_t tokens = p.tokens.offsets[cell + 1] - p.tokens.offsets[cell];
  const int32_t tiles = (tokens + tile_rows - 1) / tile_rows;
  gpu::SharedCarver carve(gpu::shared_memory());
  float* shared = carve.take<float>(kCellThreads / gpu::kWarp);
  float sum = 0;
  for (int64_t i = threadIdx.x; i < p.heads * tiles; i += kCellThreads)
    sum += totals[(cell * p.heads + i / tiles) * p.token_tiles + i % tiles];
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) cell_totals[cell] = sum;
}

// The gradient of the stabiliser, added to the key that has it: a block owns a cell. dk of that key
// is rounded to its storage type once more.
template <class T>
__global__ void __launch_bounds__(kCellThreads)
    favor_peak_kernel(FavorProblem p, const float* cell_totals, const int64_t* peak,
                      const float* projection, T* dk) {
  const int64_t cell = blockIdx.x;
  if (peak[cell] < 0) return;
  float total = 0;
  const int64_t begin = p.whole_batch ? 0 : cell, end = p.whole_batch ? p.tokens.cells : cell + 1;
  for (int64_t c = begin; c < end; ++c) total += cell_totals[c];
  const float* direction = projection + peak[cell] % p.features * p.head_dim;
  T* row = dk + p.tokens.offsets[cell] * p.stride() + peak[cell] / p.features * p.head_dim;
  for (int d = static_cast<int>(threadIdx.x); d < p.head_dim; d += kCellThreads)
    row[d] = gpu::from_f32<T>(gpu::to_f32(row[d]) - p.factor * total * direction[d]);
}

// The host side.

struct Call {
  FavorProblem p{};
  int64_t cells = 0;

  Call(const char* op, Context& ctx, const ConstTensorView& q, const Packing& packing,
       int64_t heads, const ConstTensorView& projection, FavorOptions options,
       std::initializer_list<ConstTensorView> tokens,
       std::initializer_list<ConstTensorView> features)
      : cells(packing.cells()) {
    const int64_t head_dim = q.dim(1) / heads;
    require(head_dim <= kLargestHeadDim, op, ": heads on ", ctx.device(), " are at most ",
            kLargestHeadDim, " wide, got ", head_dim);
    int64_t longest = 0;
    for (int64_t cell = 0; cell < cells; ++cell) longest = std::max(longest, packing.length(cell));
    p.tokens = packed_rows(op, ctx, packing);
    p.heads = heads;
    p.head_dim = static_cast<int32_t>(head_dim);
    p.features = static_cast<int32_t>(projection.dim(0));
    p.spans = static_cast<int32_t>(ceil_div(longest, kFavorSpan));
    const int64_t own = own_rows();
    p.token_tiles = static_cast<int32_t>(ceil_div(longest, own));
    p.feature_tiles = static_cast<int32_t>(ceil_div(p.features, own));
    p.factor = static_cast<float>(std::pow(static_cast<double>(head_dim), -0.25));
    p.whole_batch = options.stabiliser == FavorStabiliser::batch;
    p.tokens_aligned = aligned(tokens);
    p.features_aligned = aligned(features);
  }
  int own_rows() const { return p.head_dim <= 64 ? Tiles<64>::kOwn : Tiles<128>::kOwn; }
  int64_t parts() const { return cells * p.heads * p.spans; }
  int64_t area() const { return int64_t{p.features} * p.head_dim; }
  gpu::Grid token_grid() const { return {.x = cells * p.heads * p.token_tiles}; }
  gpu::Grid feature_grid() const { return {.x = parts() * p.feature_tiles}; }
  gpu::Grid element_grid() const {
    return {.x = cells * p.heads, .y = ceil_div(area(), kElementThreads)};
  }

 private:
  static bool aligned(std::initializer_list<ConstTensorView> views) {
    return std::all_of(views.begin(), views.end(), [](const ConstTensorView& view) {
      return reinterpret_cast<uintptr_t>(view.data()) % 16 == 0;
    });
  }
};

template <int kDim>
struct Width {};

// Calls f with the storage type and the width of tiles.
template <class F>
void visit_favor(DType dtype, int64_t head_dim, F&& f) {
  visit_storage(dtype, [&]<class T>(Type<T> type) {
    if (head_dim <= 64) return f(type, Width<64>{});
    f(type, Width<128>{});
  });
}

float* take_f32(Arena::Scope& scratch, int64_t n) {
  return scratch.take(Shape{n}, DType::f32).as<float>();
}

}  // namespace

void favor_attention(Context& ctx, ConstTensorView q, ConstTensorView k, ConstTensorView v,
                     const Packing& packing, int64_t heads, ConstTensorView projection,
                     FavorOptions options, TensorView out, const FavorContext& context) {
  const char* op = "favor_attention";
  Arena::Scope scratch(ctx.scratch());
  const Call call(op, ctx, q, packing, heads, projection, options, {q, k, v, out},
                  {projection, context.sums});
  const FavorProblem& p = call.p;
  const int64_t parts = call.parts();
  const SpanParts keys{
      .sums = take_f32(scratch, parts * call.area()),
      .mass = take_f32(scratch, parts * p.features),
      .shift = take_f32(scratch, parts * p.features),
      .values = take_f32(scratch, parts * p.head_dim),
      .peak = take_f32(scratch, parts * p.feature_tiles),
      .at = scratch.take(Shape{parts * p.feature_tiles}, DType::i64).as<int64_t>()};
  const auto* omega = projection.as<float>();
  auto* sums = context.sums.as<float>();
  auto* mass = context.mass.as<float>();
  auto* largest = context.largest.as<float>();
  auto* peak = context.peak.as<int64_t>();
  visit_favor(q.dtype(), p.head_dim, [&]<class T, int kDim>(Type<T>, Width<kDim>) {
    using Size = Tiles<kDim>;
    const int64_t bytes = shared_bytes_of<kDim>(false);
    launch(ctx, op, favor_keys_kernel<T, kDim>, call.feature_grid(), Size::kThreads, bytes, p,
           k.as<T>(), v.as<T>(), omega, keys);
    gpu::SharedCarver carve(nullptr);
    carve.take<float>(kCellThreads);
    carve.take<int64_t>(kCellThreads);
    launch(ctx, op, favor_stabiliser_kernel, {.x = call.cells}, kCellThreads, carve.used(), p, keys,
           largest, peak);
    if (p.whole_batch)
      launch(ctx, op, favor_batch_stabiliser_kernel, {.x = 1}, gpu::kWarp, 0, call.cells, largest,
             peak);
    launch(ctx, op, favor_spans_kernel<true>, call.element_grid(), kElementThreads, 0, p, keys,
           largest, sums, mass);
    launch(ctx, op, favor_queries_kernel<T, kDim>, call.token_grid(), Size::kThreads, bytes, p,
           q.as<T>(), omega, sums, mass, out.as<T>());
  });
}

void favor_attention_backward(Context& ctx, ConstTensorView q, ConstTensorView k, ConstTensorView v,
                              ConstTensorView out, ConstTensorView dout, const Packing& packing,
                              int64_t heads, ConstTensorView projection, FavorOptions options,
                              const FavorContext& context, TensorView dq, TensorView dk,
                              TensorView dv) {
  const char* op = "favor_attention_backward";
  Arena::Scope scratch(ctx.scratch());
  const Call call(op, ctx, q, packing, heads, projection, options, {q, k, v, out, dout, dq, dk, dv},
                  {projection, context.sums});
  const FavorProblem& p = call.p;
  const int64_t each = heads * q.dim(0);
  const QueryTerms terms{.base = take_f32(scratch, each),
                         .inverse = take_f32(scratch, each),
                         .delta = take_f32(scratch, each),
                         .top = scratch.take(Shape{each}, DType::i32).as<int32_t>()};
  const auto* omega = projection.as<float>();
  const float* sums = context.sums.as<float>();
  const float* mass = context.mass.as<float>();
  visit_favor(q.dtype(), p.head_dim, [&]<class T, int kDim>(Type<T>, Width<kDim>) {
    using Size = Tiles<kDim>;
    const int64_t one = shared_bytes_of<kDim>(false), two = shared_bytes_of<kDim>(true);
    launch(ctx, op, favor_terms_kernel<T, kDim>, call.token_grid(), Size::kThreads, one, p,
           q.as<T>(), out.as<T>(), dout.as<T>(), omega, mass, terms);
    if (!dq.empty())
      launch(ctx, op, favor_query_gradient_kernel<T, kDim>, call.token_grid(), Size::kThreads, two,
             p, q.as<T>(), dout.as<T>(), omega, sums, mass, terms, dq.as<T>());
    if (dk.empty() && dv.empty()) return;
    const int64_t parts = call.parts(), units = call.cells * heads;
    SpanParts spans{};
    spans.sums = take_f32(scratch, parts * call.area());
    spans.mass = take_f32(scratch, parts * p.features);
    float* dsums = take_f32(scratch, units * call.area());
    float* dmass = take_f32(scratch, units * p.features);
    float* totals = take_f32(scratch, units * p.token_tiles);
    float* cell_totals = take_f32(scratch, call.cells);
    launch(ctx, op, favor_context_gradient_kernel<T, kDim>, call.feature_grid(), Size::kThreads,
           one, p, q.as<T>(), dout.as<T>(), omega, terms, spans);
    launch(ctx, op, favor_spans_kernel<false>, call.element_grid(), kElementThreads, 0, p, spans,
           static_cast<const float*>(nullptr), dsums, dmass);
    launch(ctx, op, favor_key_gradient_kernel<T, kDim>, call.token_grid(), Size::kThreads, two, p,
           k.as<T>(), v.as<T>(), omega, context.largest.as<float>(), dsums, dmass,
           data_or_null<T>(dk), data_or_null<T>(dv), totals);
    if (dk.empty()) return;
    gpu::SharedCarver carve(nullptr);
    carve.take<float>(kCellThreads / gpu::kWarp);
    launch(ctx, op, favor_totals_kernel, {.x = call.cells}, kCellThreads, carve.used(), p,
           Size::kOwn, totals, cell_totals);
    launch(ctx, op, favor_peak_kernel<T>, {.x = call.cells}, kCellThreads, 0, p, cell_totals,
           context.peak.as<int64_t>(), omega, dk.as<T>());
  });
}

}  // namespace scgraft::cuda
