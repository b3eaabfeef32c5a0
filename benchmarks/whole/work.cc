// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <chrono>

#include "benchmarks/whole/whole.h"
#include "kernels/linear.h"
#include "runtime/random.h"

namespace scgraft::whole {
namespace {

struct Sizes {
  double cells = 0, tokens = 0, squares = 0;  // squares: sum over cells of length^2
};
Sizes sizes_of(const TokenStore& cells) {
  Sizes s;
  for (int64_t i = 0; i < cells.size(); ++i) {
    const auto length = static_cast<double>(cells.view(i).genes.size());
    s.cells += 1;
    s.tokens += length;
    s.squares += length * length;
  }
  return s;
}

// One layer: products of query, key, value, out and the two of the feed-forward part.
struct Layer {
  double square;  // one [inner, dim] product per row
  double ffn;     // both feed-forward products per row
  double pair;    // softmax attention: one product per pair of tokens (scores, or sums of values)
  double mix;     // FAVOR+: one product per row (features, or their sums with values)
};
Layer layer_of(const LayerSizes& c) {
  const auto dim = static_cast<double>(c.dim), inner = static_cast<double>(c.inner);
  const double mix = 2 * static_cast<double>(c.features) * inner;
  return {2 * dim * inner, 4 * dim * static_cast<double>(c.ffn), c.features == 0 ? 2 * inner : 0,
          mix};
}

}  // namespace

Work embed_work(const LayerSizes& sizes, const TokenStore& cells) {
  const Sizes s = sizes_of(cells);
  const Layer l = layer_of(sizes);
  // FAVOR+: features of queries and keys, sums over keys, what the queries read of them.
  const double full = s.tokens * (4 * l.square + l.ffn + 4 * l.mix) + 2 * s.squares * l.pair;
  const double last = s.tokens * 2 * l.square + s.cells * (2 * l.square + l.ffn) +
                      2 * s.tokens * l.pair;  // keys and values of all, the rest of one row
  const auto layers = static_cast<double>(sizes.layers);
  return {1e-9 * layers * full, 1e-9 * ((layers - 1) * full + (sizes.first_row ? last : full))};
}

Work step_work(const LayerSizes& sizes, const TokenStore& cells) {
  const Sizes s = sizes_of(cells);
  const Layer l = layer_of(sizes);
  const auto layers = static_cast<double>(sizes.layers);
  // Gradients of inputs: the same linear products again; of softmax attention: four products per
  // pair; of FAVOR+: features and values into sums and back (4), and both features to their rows.
  const double full = s.tokens * (4 * l.square + l.ffn + 6 * l.mix) + 4 * s.squares * l.pair;
  const double last =
      s.tokens * 2 * l.square + s.cells * (2 * l.square + l.ffn) + 4 * s.tokens * l.pair;
  // Into queries and values of the first layer and no further: no dK, no projection to its input.
  const double first = s.tokens * (l.square + l.ffn + 4 * l.mix) + 3 * s.squares * l.pair;
  const Work forward = embed_work(sizes, cells);
  Work work{forward.dense + 1e-9 * layers * full, forward.needed};
  const double top = sizes.first_row ? last : full;
  work.needed += 1e-9 * (layers > 1 ? (layers - 2) * full + first + top : first);
  return work;
}

double peak_gflops(int threads, DType product) {
  Context ctx(Device::cpu(), {.threads = threads});
  constexpr int64_t kRows = 4096, kIn = 512, kOut = 1536;
  Tensor x({kRows, kIn}, DType::f32), w({kOut, kIn}, DType::f32), y({kRows, kOut}, DType::f32);
  RandomStream random(1, RandomUse::initialise);
  for (Tensor* t : {&x, &w})
    for (int64_t i = 0; i < t->numel(); ++i) t->as<float>()[i] = uniform24(random.next()) - 0.5f;
  PackedWeight packed;
  packed.pack(ctx, std::as_const(w).view(), PackedFor::forward, product);
  double best = 0;
  for (int i = 0; i < 40; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    linear(ctx, std::as_const(x).view(), packed, {}, {}, nullptr, y.view());
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - begin;
    best = std::max(best, 2e-9 * static_cast<double>(kRows * kIn * kOut) / time.count());
  }
  return best;
}

}  // namespace scgraft::whole
