// SPDX-License-Identifier: Apache-2.0
#include "kernels/favor_attention.cuh"

namespace scgraft::cuda {
namespace {

using namespace favor;

// What the backward pass knows of a query, [heads, tokens] each.
struct QueryTerms {
  float* base;     // max_j u_j + s(q), in units of log2; relu: 0
  float* inverse;  // 1 / (psi(q) . mass)
  float* delta;    // dout . out * inverse
  int32_t* top;    // the feature of the maximum; relu: any
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

  RunningLargest largest[4] = {RunningLargest(p), RunningLargest(p), RunningLargest(p),
                               RunningLargest(p)};
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
        w[i][j] = at < p.features ? w[i][j] * p.scale : kNegativeInfinity;
        top.take(w[i][j], 0, at);
      }
      UNROLL
      for (int mask = 4; mask > 0; mask /= 2) {
        const float value = gpu::shuffle_xor(top.value, mask);
        const int32_t at = gpu::shuffle_xor(top.feature, mask);
        top.take(value, 0, at);
      }
      if (top.value > largest[i].value) top_feature[i] = top.feature;
      if (!p.relu) largest[i].raise(top.value);
      UNROLL
      for (int j = 0; j < Size::kColumns; ++j)
        largest[i].mass += p.feature(w[i][j] - largest[i].value) * tiles.terms1[micro_column(j)];
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
        1.0f / (gpu::exp2_fast(-half[i]) * group_sum(largest[i].mass) + p.floor * all_mass);
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
        const float psi = p.feature(fmaf(w[i][j], p.scale, -tiles.terms1[row])) + p.floor;
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

// dx of the own rows from the sums of g Omega and of g, 0 of relu: c (sum - total (c x)).
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
        const float e = p.feature(fmaf(g[i][j], p.scale, -base[i]));
        g[i][j] = p.slope(e) * (dpsi[i][j] * inverse[i] - delta[i] * tiles.terms1[micro_column(j)]);
        total[i] += g[i][j];
      }
    }
    Size::Weights::put(tiles.weights, g);
    Size::Weights::template accumulate<kDim>(tiles.weights, tiles.walked1, sum);
  }
  UNROLL
  for (int i = 0; i < 4; ++i) {
    total[i] = p.relu ? 0 : group_sum(total[i]);
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
        e[i][j] = p.feature(fmaf(e[i][j], p.scale, -base[i]));
    }
    if (dk) {
      float g[4][Size::kColumns];
      micro_product<kDim>(tiles.own2, tiles.walked2, g);
      UNROLL
      for (int i = 0; i < 4; ++i) {
        UNROLL
        for (int j = 0; j < Size::kColumns; ++j) {
          // Behind the last feature the gradients are zeros, and so is g.
          g[i][j] = p.slope(e[i][j]) * (g[i][j] + tiles.terms1[micro_column(j)]);
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
        for (int j = 0; j < Size::kColumns; ++j) e[i][j] += p.floor;
      }
      Size::Weights::put(tiles.weights, e);
      Size::Weights::template accumulate<kDim>(tiles.weights, tiles.walked2, sum_v);
    }
  }
  float all = 0;
  UNROLL
  for (int i = 0; i < 4; ++i) {
    total[i] = p.relu ? 0 : group_sum(total[i]);
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

}  // namespace

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
