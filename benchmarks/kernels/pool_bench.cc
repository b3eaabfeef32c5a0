// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/kernels/bench.h"
#include "kernels/pool.h"

namespace scgraft {
namespace {

struct Case {
  Context ctx{bench_device()};
  int64_t count;
  Pooling kind;
  BenchCells cells;
  Tensor tokens, pooled, weight;

  explicit Case(const benchmark::State& state)
      : count(state.range(1)),
        kind(static_cast<Pooling>(state.range(3))),
        cells(ctx, count * state.range(2), state.range(2)),
        tokens(random_tensor({count * state.range(2), kBenchDim}, 1, bench_type(state))),
        pooled(random_tensor({count, kBenchDim}, 2, bench_type(state))),
        weight(random_tensor({tokens.dim(0)}, 3, bench_type(state))) {}
  ConstTensorView w() const {
    return kind == Pooling::weighted ? weight.view() : ConstTensorView();
  }
  int64_t weight_bytes() const { return kind == Pooling::weighted ? weight.nbytes() : 0; }
};

void forward(benchmark::State& state) {
  Case c(state);
  Cost cost{.bytes = 2 * c.pooled.nbytes()};
  if (c.kind != Pooling::cls)
    cost = {.bytes = c.tokens.nbytes() + c.pooled.nbytes() + c.weight_bytes(),
            .flops = (c.kind == Pooling::weighted ? 2 : 1) * c.tokens.numel()};
  measure(state, c.ctx, cost, [&] {
    pool(c.ctx, c.kind, std::as_const(c.tokens).view(), c.w(), c.cells.packing(), c.pooled.view());
  });
}

void backward(benchmark::State& state) {
  Case c(state);
  measure(state, c.ctx,
          {.bytes = c.tokens.nbytes() + c.pooled.nbytes() + c.weight_bytes(),
           .flops = c.kind == Pooling::cls ? 0 : c.tokens.numel()},
          [&] {
            pool_backward(c.ctx, c.kind, std::as_const(c.pooled).view(), c.w(), c.cells.packing(),
                          c.tokens.view());
          });
}

void max_forward(benchmark::State& state) {
  Case c(state);
  Tensor at = new_tensor(c.pooled.shape(), DType::i32);
  measure(state, c.ctx,
          {.bytes = c.tokens.nbytes() + c.pooled.nbytes() + at.nbytes(), .flops = c.tokens.numel()},
          [&] {
            pool_max(c.ctx, std::as_const(c.tokens).view(), c.cells.packing(), c.pooled.view(),
                     at.view());
          });
}

void max_backward(benchmark::State& state) {
  Case c(state);
  Tensor at = new_tensor(c.pooled.shape(), DType::i32);
  pool_max(c.ctx, std::as_const(c.tokens).view(), c.cells.packing(), c.pooled.view(), at.view());
  measure(state, c.ctx, {.bytes = c.tokens.nbytes() + c.pooled.nbytes() + at.nbytes()}, [&] {
    pool_max_backward(c.ctx, std::as_const(c.pooled).view(), at.view(), c.cells.packing(),
                      c.tokens.view());
  });
}

void sizes(benchmark::internal::Benchmark* b) {
  std::vector<std::vector<int64_t>> lists;
  for (const int64_t kind : {0, 1, 2}) {
    if (bench_on() == BenchOn::emulated) {
      lists.push_back({2, 70, kind});
      continue;
    }
    lists.push_back({64, 1200, kind});
    lists.push_back({1, 1200, kind});
  }
  in_types(b, {"cells", "tokens", "kind"}, lists);
}
BENCHMARK(forward)->Name("pool/forward")->Apply(sizes);
BENCHMARK(backward)->Name("pool/backward")->Apply(sizes);

// The gene rows of scFoundation's cells.
void max_sizes(benchmark::internal::Benchmark* b) {
  static const std::vector<std::vector<int64_t>> real = {{64, 1200, 0}, {1, 1200, 0}},
                                                 tiny = {{2, 70, 0}};
  in_types(b, {"cells", "tokens", "kind"}, by_device(real, real, tiny));
}
BENCHMARK(max_forward)->Name("pool_max/forward")->Apply(max_sizes);
BENCHMARK(max_backward)->Name("pool_max/backward")->Apply(max_sizes);

}  // namespace
}  // namespace scgraft
