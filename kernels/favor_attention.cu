// SPDX-License-Identifier: Apache-2.0
#include "kernels/favor_attention.cuh"

namespace scgraft::cuda {
namespace {

using namespace favor;

// Sums over keys.

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
  for (int i = 0; i < 4; ++i) shift[i] = p.relu ? 0 : kNegativeInfinity;
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
        w[i][j] =
            valid ? fmaf(w[i][j], p.scale, -tiles.terms1[micro_column(j)]) : kNegativeInfinity;
        top = fmaxf(top, w[i][j]);
      }
      if (!p.relu) {
        const float before = shift[i];
        shift[i] = fmaxf(shift[i], group_max(top));
        const float faded = gpu::exp2_fast(before - shift[i]);
        mass[i] *= faded;
        UNROLL
        for (int n = 0; n < kDim / 32; ++n) sum[i][n] = scaled(sum[i][n], faded);
      }
      UNROLL
      for (int j = 0; j < Size::kColumns; ++j) {
        w[i][j] = p.feature(w[i][j] - shift[i]);
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

// A block owns a cell: the largest of its parts and where it is; relu features have none. A few
// kilobytes; latency.
__global__ void __launch_bounds__(kCellThreads)
    favor_stabiliser_kernel(FavorProblem p, SpanParts parts, float* largest, int64_t* peak) {
  const int64_t cell = blockIdx.x;
  if (p.relu) {
    if (threadIdx.x == 0) largest[cell] = 0, peak[cell] = -1;
    return;
  }
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

// Queries.

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

  RunningLargest largest[4] = {RunningLargest(p), RunningLargest(p), RunningLargest(p),
                               RunningLargest(p)};
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
        w[i][j] = valid ? w[i][j] * p.scale : kNegativeInfinity;
        top = fmaxf(top, w[i][j]);
      }
      if (!p.relu) {
        const float faded = largest[i].raise(group_max(top));
        UNROLL
        for (int n = 0; n < kDim / 32; ++n) sum[i][n] = scaled(sum[i][n], faded);
      }
      UNROLL
      for (int j = 0; j < Size::kColumns; ++j) {
        w[i][j] = p.feature(w[i][j] - largest[i].value);
        largest[i].mass += w[i][j] * tiles.terms1[micro_column(j)];
      }
    }
    Size::Weights::put(tiles.weights, w);
    Size::Weights::template accumulate<kDim>(tiles.weights, tiles.walked2, sum);
  }

  // psi = e exp(-s(q)) + floor, of relu e + floor: the floor meets the sums over all features.
  gpu::sync_block();  // nobody still reads the walked tiles
  UNROLL
  for (int n = 0; n < Size::kColumnsOfThread; ++n) {
    const int column = static_cast<int>(threadIdx.x) + n * Size::kThreads;
    if (column < kDim) tiles.walked1[column] = p.floor * columns[n];
  }
  gpu::sync_block();
  float half[4];
  own_halves<kDim>(p, tiles.own1, half);
  all_mass = group_sum(all_mass);
  UNROLL
  for (int i = 0; i < 4; ++i) {
    const float scale = gpu::exp2_fast(-half[i]);
    const float inverse = 1.0f / (scale * group_sum(largest[i].mass) + p.floor * all_mass);
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

}  // namespace scgraft::cuda
