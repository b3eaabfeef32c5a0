// SPDX-License-Identifier: Apache-2.0
#include "kernels/favor_attention.cuh"
#include "kernels/favor_attention_received.h"

// Floor, per head of n tokens and M features: a product of 2 n M head_dim operations for each of q
// and k, beside two tensors of n head_dim elements: bound by f32 multiply-adds, as the forward pass
// and for the same reasons (favor_attention.cuh). No feature is stored: those of the queries are
// formed twice, which makes the products three.
namespace scgraft::cuda {

namespace {

using namespace favor;

// Shared memory of every kernel here.
template <int kDim>
struct ReceivedShared {
  using Size = Tiles<kDim>;
  float *own, *walked;
  float *terms1, *terms2;  // [kWalked], of walked rows
  SCGRAFT_HD explicit ReceivedShared(gpu::SharedCarver& carve)
      : own(carve.take<float>(Size::Own::kSize)),
        walked(carve.take<float>(Size::Walked::kSize)),
        terms1(carve.take<float>(Size::kWalked)),
        terms2(carve.take<float>(Size::kWalked)) {}
};

// A block owns kOwn queries of one (cell, head) and walks the features for what makes psi of a
// query and its share; reads q once and the projection once per block, from L2.
//
//   base     [heads, tokens]  max_j u_j + s(q), in the units of u; relu: 0
//   inverse  [heads, tokens]  1 / (psi(q) . mass)
template <class T, int kDim>
__global__ void __launch_bounds__(Tiles<kDim>::kThreads, 2)
    favor_received_terms_kernel(FavorProblem p, const T* q, const float* projection,
                                const float* mass, float* base, float* inverse) {
  using Size = Tiles<kDim>;
  const TokenBlock b(p, Size::kOwn);
  if (b.empty()) return;
  gpu::SharedCarver carve(gpu::shared_memory());
  const ReceivedShared<kDim> tiles(carve);
  Size::Own::load(tiles.own, q + b.at(p), p.token_rows(), b.begin, b.tokens);
  mass += b.unit * p.features;

  RunningLargest largest[4] = {RunningLargest(p), RunningLargest(p), RunningLargest(p),
                               RunningLargest(p)};
  float all_mass = 0;
  for (int feature = 0; feature < p.features; feature += Size::kWalked) {
    gpu::sync_block();  // nobody still reads the tile before
    Size::Walked::load(tiles.walked, projection, p.feature_rows(), feature, p.features);
    if (threadIdx.x < Size::kWalked) {
      const int j = feature + static_cast<int>(threadIdx.x);
      tiles.terms1[threadIdx.x] = j < p.features ? mass[j] : 0;
    }
    gpu::sync_block();
    UNROLL
    for (int j = 0; j < Size::kColumns; ++j) all_mass += tiles.terms1[micro_column(j)];
    float u[4][Size::kColumns];
    micro_product<kDim>(tiles.own, tiles.walked, u);
    UNROLL
    for (int i = 0; i < 4; ++i) {
      float top = kNegativeInfinity;
      UNROLL
      for (int j = 0; j < Size::kColumns; ++j) {
        const bool valid = feature + micro_column(j) < p.features;
        u[i][j] = valid ? u[i][j] * p.scale : kNegativeInfinity;
        top = fmaxf(top, u[i][j]);
      }
      if (!p.relu) largest[i].raise(group_max(top));
      UNROLL
      for (int j = 0; j < Size::kColumns; ++j)
        largest[i].mass += p.feature(u[i][j] - largest[i].value) * tiles.terms1[micro_column(j)];
    }
  }

  float half[4];
  own_halves<kDim>(p, tiles.own, half);
  all_mass = group_sum(all_mass);
  UNROLL
  for (int i = 0; i < 4; ++i) {
    const float normaliser =
        gpu::exp2_fast(-half[i]) * group_sum(largest[i].mass) + p.floor * all_mass;
    const int query = b.begin + micro_row(i);
    if (query >= b.tokens || gpu::lane() % 8 != 0) continue;
    const int64_t at = b.head * p.tokens.tokens + b.first + query;
    base[at] = largest[i].value + half[i];
    inverse[at] = 1.0f / normaliser;
  }
}

// The sum of psi(q) / (psi(q) . mass) over a span: a block owns kOwn features and walks the
// queries. Reads q once per tile of features, mostly from L2.
//
//   weights  [parts, features]
template <class T, int kDim>
__global__ void __launch_bounds__(Tiles<kDim>::kThreads, 2)
    favor_received_weights_kernel(FavorProblem p, const T* q, const float* projection,
                                  const float* base, const float* inverse, float* weights) {
  using Size = Tiles<kDim>;
  const FeatureBlock b(p, Size::kOwn);
  if (b.empty()) return;
  gpu::SharedCarver carve(gpu::shared_memory());
  const ReceivedShared<kDim> tiles(carve);
  Size::Own::load(tiles.own, projection, p.feature_rows(), b.feature, p.features);

  float sum[4] = {};
  for (int query = b.begin; query < b.end; query += Size::kWalked) {
    gpu::sync_block();  // nobody still reads the tile before
    Size::Walked::load(tiles.walked, q + b.at(p), p.token_rows(), query, b.end);
    if (threadIdx.x < Size::kWalked) {
      const int row = query + static_cast<int>(threadIdx.x);
      const bool valid = row < b.end;
      const int64_t at = valid ? b.head * p.tokens.tokens + b.first + row : 0;
      tiles.terms1[threadIdx.x] = valid ? base[at] : 0;
      tiles.terms2[threadIdx.x] = valid ? inverse[at] : 0;
    }
    gpu::sync_block();
    float u[4][Size::kColumns];
    micro_product<kDim>(tiles.own, tiles.walked, u);
    UNROLL
    for (int i = 0; i < 4; ++i) {
      UNROLL
      for (int j = 0; j < Size::kColumns; ++j) {
        const int row = micro_column(j);
        const float psi = p.feature(fmaf(u[i][j], p.scale, -tiles.terms1[row])) + p.floor;
        sum[i] += psi * tiles.terms2[row];
      }
    }
  }
  UNROLL
  for (int i = 0; i < 4; ++i) {
    sum[i] = group_sum(sum[i]);
    const int feature = b.feature + micro_row(i);
    if (feature < p.features && gpu::lane() % 8 == 0)
      weights[b.part * p.features + feature] = sum[i];
  }
}

// A block owns kOwn keys of one (cell, head) and walks the features, whose weights it adds up over
// the spans of the cell in order: as many numbers as a tile of the projection has where a cell is
// long. Reads k once.
template <class T, int kDim>
__global__ void __launch_bounds__(Tiles<kDim>::kThreads, 2)
    favor_received_kernel(FavorProblem p, const T* k, const float* projection, const float* largest,
                          const float* weights, float* received) {
  using Size = Tiles<kDim>;
  const TokenBlock b(p, Size::kOwn);
  if (b.empty()) return;
  gpu::SharedCarver carve(gpu::shared_memory());
  const ReceivedShared<kDim> tiles(carve);
  Size::Own::load(tiles.own, k + b.at(p), p.token_rows(), b.begin, b.tokens);
  const auto spans =
      (b.tokens + static_cast<int32_t>(kFavorSpan) - 1) / static_cast<int32_t>(kFavorSpan);
  weights += b.unit * p.spans * p.features;
  gpu::sync_block();
  float base[4], sum[4] = {};
  own_halves<kDim>(p, tiles.own, base);
  UNROLL
  for (int i = 0; i < 4; ++i) base[i] += largest[b.cell] * kLog2E;

  for (int feature = 0; feature < p.features; feature += Size::kWalked) {
    gpu::sync_block();  // nobody still reads the tile before
    Size::Walked::load(tiles.walked, projection, p.feature_rows(), feature, p.features);
    if (threadIdx.x < Size::kWalked) {
      const int j = feature + static_cast<int>(threadIdx.x);
      float weight = 0;
      for (int span = 0; j < p.features && span < spans; ++span)
        weight += weights[int64_t{span} * p.features + j];
      tiles.terms1[threadIdx.x] = weight;
    }
    gpu::sync_block();
    float u[4][Size::kColumns];
    micro_product<kDim>(tiles.own, tiles.walked, u);
    UNROLL
    for (int i = 0; i < 4; ++i) {
      UNROLL
      for (int j = 0; j < Size::kColumns; ++j) {
        // Behind the last feature u is 0, of which the shift can make anything.
        const bool valid = feature + micro_column(j) < p.features;
        const float psi = p.feature(valid ? fmaf(u[i][j], p.scale, -base[i]) : 0) + p.floor;
        sum[i] += psi * tiles.terms1[micro_column(j)];
      }
    }
  }
  UNROLL
  for (int i = 0; i < 4; ++i) {
    sum[i] = group_sum(sum[i]);
    const int key = b.begin + micro_row(i);
    if (key < b.tokens && gpu::lane() % 8 == 0)
      received[b.head * p.tokens.tokens + b.first + key] = sum[i];
  }
}

}  // namespace

void favor_attention_received(Context& ctx, ConstTensorView q, ConstTensorView k,
                              const Packing& packing, int64_t heads, ConstTensorView projection,
                              FavorOptions options, const FavorContext& context,
                              TensorView received) {
  const char* op = "favor_attention_received";
  Arena::Scope scratch(ctx.scratch());
  const Call call(op, ctx, q, packing, heads, projection, options, {q, k}, {projection});
  const FavorProblem& p = call.p;
  float* base = take_f32(scratch, received.numel());
  float* inverse = take_f32(scratch, received.numel());
  float* weights = take_f32(scratch, call.parts() * p.features);
  const auto* omega = projection.as<float>();
  const auto* mass = context.mass.as<float>();
  const auto* largest = context.largest.as<float>();
  visit_favor(q.dtype(), p.head_dim, [&]<class T, int kDim>(Type<T>, Width<kDim>) {
    using Size = Tiles<kDim>;
    gpu::SharedCarver carve(nullptr);
    const ReceivedShared<kDim> shared(carve);
    static_cast<void>(shared);
    const int64_t bytes = carve.used();
    launch(ctx, op, favor_received_terms_kernel<T, kDim>, call.token_grid(), Size::kThreads, bytes,
           p, q.as<T>(), omega, mass, base, inverse);
    launch(ctx, op, favor_received_weights_kernel<T, kDim>, call.feature_grid(), Size::kThreads,
           bytes, p, q.as<T>(), omega, base, inverse, weights);
    launch(ctx, op, favor_received_kernel<T, kDim>, call.token_grid(), Size::kThreads, bytes, p,
           k.as<T>(), omega, largest, weights, received.as<float>());
  });
}

}  // namespace scgraft::cuda
