// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <limits>

#include "kernels/attention_device.cuh"
#include "kernels/attention_launch.cuh"
#include "kernels/favor_attention.h"
#include "kernels/favor_attention_simd.h"
#include "kernels/require_tensor.h"
#include "kernels/rows.cuh"

// What favor_attention.cu and favor_attention_backward.cu share: what a call and its blocks look
// like, and sums over spans of tokens.
//
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
// features own and tokens are walked where sums over tokens are formed. u is kept in units of log2,
// that of relu features in its own.
namespace scgraft::cuda {
namespace favor {

inline constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();

inline constexpr int kCellThreads = 128;
inline constexpr int kElementThreads = 256;

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
  float scale;            // of x Omega^T: the factor, in the units of u
  float half;             // of |x|^2: what makes s(x) in the units of u; relu: 0
  float floor;            // what a feature is more than exp(...) or max(u, 0)
  bool tokens_aligned;    // all tensors [tokens, heads * head_dim], to 16 bytes
  bool features_aligned;  // all [features, head_dim]
  bool whole_batch;       // FavorStabiliser::batch
  bool relu;              // FavorKernel::relu, whose shifts and totals are 0

  __device__ int64_t stride() const { return heads * head_dim; }
  __device__ int64_t area() const { return int64_t{features} * head_dim; }
  // A feature without the floor, from u without what it is shifted by. NaN stays NaN.
  __device__ float feature(float x) const { return relu ? (x < 0 ? 0 : x) : gpu::exp2_fast(x); }
  // What a gradient of psi meets on its way to u.
  __device__ float slope(float feature) const { return relu ? (feature > 0 ? 1 : 0) : feature; }
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

// s(x) of the thread's own rows in the units of u: |c x|^2 / 2; relu: 0.
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
    half[i] = group_sum(sum) * p.half;
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
  return sum * p.half;
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

// What blocks leave of every part (cell, head, span). Of keys: sums without the floor, feature by
// feature with a shift of its own, and what else the context is made of. Of the gradient of the
// context: its sums and mass as they are.
struct SpanParts {
  float* sums;    // [parts, features, head_dim]
  float* mass;    // [parts, features]
  float* shift;   // [parts, features], the largest u - s(k), in units of log2; relu: 0
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

// The largest u of a query so far, in units of log2, and the sums that it is the shift of. Of relu
// features the largest is 0 and never raised.
struct RunningLargest {
  float value;
  float mass = 0;  // of the thread's columns

  __device__ explicit RunningLargest(const FavorProblem& p)
      : value(p.relu ? 0 : kNegativeInfinity) {}
  // Takes the largest of the next tile; returns what to multiply earlier sums with.
  __device__ float raise(float tile) {
    const float before = value;
    value = fmaxf(value, tile);
    const float faded = gpu::exp2_fast(before - value);
    mass *= faded;
    return faded;
  }
};

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
    p.relu = options.kernel == FavorKernel::relu;
    p.factor = static_cast<float>(std::pow(static_cast<double>(head_dim), -0.25));
    p.scale = p.relu ? p.factor : p.factor * kLog2E;
    p.half = p.relu ? 0 : 0.5f * p.factor * p.scale;
    p.floor = static_cast<float>(p.relu ? kFavorReluFloor : kFavorFloor);
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

inline float* take_f32(Arena::Scope& scratch, int64_t n) {
  return scratch.take(Shape{n}, DType::f32).as<float>();
}

}  // namespace favor

// A thread owns an element of [features, head_dim] of a (cell, head) and adds its spans in order:
// with kKeys those of keys, brought to the stabiliser and with the floor, else those of a
// gradient as they are. Reads every part once; that bounds it.
template <bool kKeys>
__global__ void __launch_bounds__(favor::kElementThreads)
    favor_spans_kernel(favor::FavorProblem p, favor::SpanParts parts, const float* largest,
                       float* sums, float* mass) {
  const int64_t unit = blockIdx.x;
  const int64_t element = int64_t{blockIdx.y} * favor::kElementThreads + threadIdx.x;
  if (element >= p.area()) return;
  const int64_t cell = unit / p.heads;
  const int32_t tokens = p.tokens.offsets[cell + 1] - p.tokens.offsets[cell];
  const auto spans =
      (tokens + static_cast<int32_t>(kFavorSpan) - 1) / static_cast<int32_t>(kFavorSpan);
  const int64_t feature = element / p.head_dim, column = element % p.head_dim;
  const float stabiliser = kKeys ? largest[cell] * kLog2E : 0;
  float sum = 0;
  float weight = kKeys ? p.floor * static_cast<float>(tokens) : 0;
  for (int64_t part = unit * p.spans; part < unit * p.spans + spans; ++part) {
    const int64_t row = part * p.features + feature;
    float factor = 1;
    if constexpr (kKeys) {
      factor = gpu::exp2_fast(parts.shift[row] - stabiliser);
      sum += p.floor * parts.values[part * p.head_dim + column];
    }
    sum += factor * parts.sums[row * p.head_dim + column];
    weight += factor * parts.mass[row];
  }
  sums[unit * p.area() + element] = sum;
  if (column == 0) mass[unit * p.features + feature] = weight;
}

}  // namespace scgraft::cuda
