// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/kernels/bench.h"
#include "kernels/join_columns.h"

namespace scgraft {
namespace {

struct Case {
  Context ctx{bench_device()};
  Tensor a, b, y;

  explicit Case(const benchmark::State& state)
      : a(random_tensor({state.range(1), kBenchDim}, 1, bench_type(state))),
        b(random_tensor(a.shape(), 2, bench_type(state))),
        y(new_tensor({state.range(1), 2 * kBenchDim}, bench_type(state))) {}
};

void join(benchmark::State& state) {
  Case c(state);
  measure(state, c.ctx, {.bytes = 2 * c.y.nbytes(), .streams = true}, [&] {
    join_columns(c.ctx, std::as_const(c.a).view(), std::as_const(c.b).view(), c.y.view());
  });
}

void split(benchmark::State& state) {
  Case c(state);
  join_columns(c.ctx, std::as_const(c.a).view(), std::as_const(c.b).view(), c.y.view());
  measure(state, c.ctx, {.bytes = 2 * c.y.nbytes(), .streams = true},
          [&] { split_columns(c.ctx, std::as_const(c.y).view(), c.a.view(), c.b.view()); });
}

BENCHMARK(join)->Name("join_columns/join")->Apply(sizes_by_tokens);
BENCHMARK(split)->Name("join_columns/split")->Apply(sizes_by_tokens);

}  // namespace
}  // namespace scgraft
