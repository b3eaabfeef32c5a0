// SPDX-License-Identifier: Apache-2.0
#include <string>
#include <vector>

#include "benchmarks/kernels/bench.h"
#include "kernels/attention.h"
#include "kernels/attention_export.h"

namespace scgraft {
namespace {

constexpr int64_t kHeads = 8;
constexpr int64_t kHeadDim = 64;
constexpr int64_t kTop = 16;

// Cells of equal length after their forward pass.
struct Case {
  Context ctx;
  int64_t cells, length;
  std::vector<int32_t> offsets{0};
  Tensor q, k, lse;

  explicit Case(const benchmark::State& state)
      : cells(state.range(0)),
        length(state.range(1)),
        q(random_tensor({cells * length, kHeads * kHeadDim}, 1)),
        k(random_tensor(q.shape(), 2)),
        lse({q.dim(0), kHeads}, DType::f32) {
    for (int64_t cell = 0; cell < cells; ++cell)
      offsets.push_back(offsets.back() + static_cast<int32_t>(length));
    Tensor o(q.shape(), DType::f32);
    const Packing packing = Packing::over(offsets);
    attention(ctx, q.view(), k.view(), k.view(), packing, packing, kHeads, {}, o.view(),
              lse.view());
  }
  template <class Use>
  void run(benchmark::State& state, Cost cost, Use&& use) {
    const Packing packing = Packing::over(offsets);
    const AttentionPass pass{q.view(), k.view(), lse.view(), packing, packing, kHeads};
    for (auto _ : state) use(pass);
    report(state, cost);
  }
  // One product of the two that a forward pass has.
  int64_t product() const { return 2 * kHeadDim * kHeads * cells * length * length; }
  int64_t inputs() const { return q.nbytes() + k.nbytes() + lse.nbytes(); }
};

void cls(benchmark::State& state) {
  Case c(state);
  Tensor p({1, kHeads, c.q.dim(0)}, DType::f32);
  const Cost cost{c.k.nbytes() + p.nbytes(), 2 * c.k.numel()};
  c.run(state, cost,
        [&](const AttentionPass& pass) { attention_of_queries(c.ctx, pass, {}, p.view()); });
}
void received(benchmark::State& state) {
  Case c(state);
  Tensor out({kHeads, c.q.dim(0)}, DType::f32);
  c.run(state, {c.inputs() + out.nbytes(), c.product()},
        [&](const AttentionPass& pass) { attention_received(c.ctx, pass, {}, out.view()); });
}
void map(benchmark::State& state) {
  Case c(state);
  Tensor out({c.length, c.length}, DType::f32);
  c.run(state, {c.inputs() + 2 * out.nbytes(), c.product()},
        [&](const AttentionPass& pass) { attention_map(c.ctx, pass, out.view()); });
}
void top_keys(benchmark::State& state) {
  Case c(state);
  Tensor p({c.q.dim(0), kHeads, kTop}, DType::f32), keys(p.shape(), DType::i32);
  c.run(state, {c.inputs() + p.nbytes() + keys.nbytes(), c.product()},
        [&](const AttentionPass& pass) { attention_top_keys(c.ctx, pass, p.view(), keys.view()); });
}

void sizes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"cells", "tokens"})->UseRealTime()->Unit(benchmark::kMillisecond);
  b->Args({8, 601})->Args({8, 1201});
}
BENCHMARK(cls)->Name("attention_of_queries")->Apply(sizes);
BENCHMARK(received)->Name("attention_received")->Apply(sizes);
BENCHMARK(map)->Name("attention_map")->Apply(sizes);
BENCHMARK(top_keys)->Name("attention_top_keys")->Apply(sizes);

}  // namespace
}  // namespace scgraft
