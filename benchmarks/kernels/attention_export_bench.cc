// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/kernels/bench.h"
#include "kernels/attention.h"
#include "kernels/attention_export.h"

namespace scgraft {
namespace {

constexpr int64_t kHeads = 8;
constexpr int64_t kHeadDim = 64;
constexpr int64_t kTop = 16;
constexpr int64_t kPrefix = 64;

// Cells of equal length after their forward pass.
struct Case {
  Context ctx{bench_device()};
  int64_t cells, length;
  DType type;
  BenchCells packed;
  Tensor q, k, lse;

  explicit Case(const benchmark::State& state)
      : cells(state.range(1)),
        length(state.range(2)),
        type(bench_type(state)),
        packed(ctx, cells * length, length),
        q(random_tensor({cells * length, kHeads * kHeadDim}, 1, type)),
        k(random_tensor(q.shape(), 2, type)),
        lse(new_tensor({q.dim(0), kHeads})) {
    Tensor o = new_tensor(q.shape(), type);
    attention(ctx, q.view(), k.view(), k.view(), packed.packing(), packed.packing(), kHeads, {},
              o.view(), lse.view());
  }
  AttentionPass pass() const {
    return {q.view(), k.view(), lse.view(), packed.packing(), packed.packing(), kHeads};
  }
  // One product of the two that a forward pass has.
  Cost cost(int64_t result_bytes) const {
    return {.bytes = q.nbytes() + k.nbytes() + lse.nbytes() + result_bytes,
            .flops = 2 * kHeadDim * kHeads * cells * length * length,
            .type = type};
  }
};

void cls(benchmark::State& state) {
  Case c(state);
  Tensor p = new_tensor({1, kHeads, c.q.dim(0)});
  measure(state, c.ctx,
          {.bytes = c.k.nbytes() + p.nbytes(), .flops = 2 * c.k.numel(), .type = c.type},
          [&] { attention_of_queries(c.ctx, c.pass(), {}, p.view()); });
}
void prefix_share(benchmark::State& state) {
  Case c(state);
  const Tensor prefix = random_tensor({kPrefix, c.q.dim(1)}, 3, c.type);
  Tensor share = new_tensor({c.q.dim(0), kHeads});
  AttentionPass pass = c.pass();
  pass.prefix.k = prefix.view();
  measure(state, c.ctx,
          {.bytes = c.q.nbytes() + prefix.nbytes() + c.lse.nbytes() + share.nbytes(),
           .flops = 2 * kPrefix * c.q.numel(),
           .type = c.type},
          [&] { attention_prefix_share(c.ctx, pass, share.view()); });
}
void received(benchmark::State& state) {
  Case c(state);
  Tensor out = new_tensor({kHeads, c.q.dim(0)});
  measure(state, c.ctx, c.cost(out.nbytes()),
          [&] { attention_received(c.ctx, c.pass(), {}, out.view()); });
}
void map(benchmark::State& state) {
  Case c(state);
  Tensor out = new_tensor({c.length, c.length});
  measure(state, c.ctx, c.cost(2 * out.nbytes()),
          [&] { attention_map(c.ctx, c.pass(), out.view()); });
}
void top_keys(benchmark::State& state) {
  Case c(state);
  Tensor p = new_tensor({c.q.dim(0), kHeads, kTop}), keys = new_tensor(p.shape(), DType::i32);
  measure(state, c.ctx, c.cost(p.nbytes() + keys.nbytes()),
          [&] { attention_top_keys(c.ctx, c.pass(), p.view(), keys.view()); });
}

void sizes(benchmark::internal::Benchmark* b) {
  static const std::vector<std::vector<int64_t>> cpu = {{8, 601}, {8, 1201}},
                                                 gpu = {{8, 601}, {64, 1201}}, tiny = {{2, 20}};
  in_types(b, {"cells", "tokens"}, by_device(cpu, gpu, tiny));
  b->Unit(benchmark::kMillisecond);
}
BENCHMARK(cls)->Name("attention_export/of_queries")->Apply(sizes);
BENCHMARK(prefix_share)->Name("attention_export/prefix_share")->Apply(sizes);
BENCHMARK(received)->Name("attention_export/received")->Apply(sizes);
BENCHMARK(map)->Name("attention_export/map")->Apply(sizes);
BENCHMARK(top_keys)->Name("attention_export/top_keys")->Apply(sizes);

}  // namespace
}  // namespace scgraft
