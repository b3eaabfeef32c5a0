// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/kernels/bench.h"
#include "kernels/batch_norm.h"

namespace scgraft {
namespace {

struct Case {
  Context ctx{bench_device()};
  Tensor x, dy, y, mean, var;

  explicit Case(const benchmark::State& state)
      : x(random_tensor({state.range(1), kBenchDim}, 1, bench_type(state))),
        dy(random_tensor(x.shape(), 2, bench_type(state))),
        y(new_tensor(x.shape(), bench_type(state))),
        mean(new_tensor({kBenchDim})),
        var(new_tensor({kBenchDim})) {
    batch_moments(ctx, std::as_const(x).view(), mean.view(), var.view());
  }
  BatchNormMap map() const { return {.mean = mean.view(), .var = var.view()}; }
};

void moments(benchmark::State& state) {
  Case c(state);
  measure(state, c.ctx, {.bytes = 2 * c.x.nbytes(), .flops = 4 * c.x.numel(), .streams = true},
          [&] { batch_moments(c.ctx, std::as_const(c.x).view(), c.mean.view(), c.var.view()); });
}

void forward(benchmark::State& state) {
  Case c(state);
  measure(state, c.ctx, {.bytes = 2 * c.x.nbytes(), .flops = 2 * c.x.numel(), .streams = true},
          [&] { batch_norm(c.ctx, std::as_const(c.x).view(), c.map(), c.y.view()); });
}

void backward(benchmark::State& state) {
  Case c(state);
  measure(state, c.ctx, {.bytes = 5 * c.x.nbytes(), .flops = 10 * c.x.numel(), .streams = true},
          [&] {
            batch_norm_backward(c.ctx, std::as_const(c.x).view(), std::as_const(c.dy).view(),
                                c.map(), true, c.y.view(), {}, {});
          });
}

BENCHMARK(moments)->Name("batch_norm/moments")->Apply(sizes_by_tokens);
BENCHMARK(forward)->Name("batch_norm/forward")->Apply(sizes_by_tokens);
BENCHMARK(backward)->Name("batch_norm/backward")->Apply(sizes_by_tokens);

}  // namespace
}  // namespace scgraft
