// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/kernels/bench.h"
#include "kernels/softmax.h"

namespace scgraft {
namespace {

// Of scFoundation's soft bins.
constexpr int64_t kBins = 100;

void forward(benchmark::State& state) {
  Context ctx(bench_device());
  const Tensor x = random_tensor({state.range(1), kBins}, 0, bench_type(state));
  Tensor y = new_tensor(x.shape(), x.dtype());
  measure(state, ctx, {.bytes = 2 * x.nbytes(), .flops = 4 * x.numel()},
          [&] { softmax(ctx, x.view(), y.view()); });
}

void backward(benchmark::State& state) {
  Context ctx(bench_device());
  const Tensor y = random_tensor({state.range(1), kBins}, 0, bench_type(state)),
               dy = random_tensor(y.shape(), 1, y.dtype());
  Tensor dx = new_tensor(y.shape(), y.dtype());
  measure(state, ctx, {.bytes = 3 * y.nbytes(), .flops = 4 * y.numel()},
          [&] { softmax_backward(ctx, y.view(), dy.view(), dx.view()); });
}

// Distinct values of a cell, and of a batch of normalised ones.
void sizes(benchmark::internal::Benchmark* b) {
  static const std::vector<std::vector<int64_t>> real = {{200}, {20000}}, tiny = {{9}};
  in_types(b, {"rows"}, by_device(real, real, tiny));
}
BENCHMARK(forward)->Name("softmax/forward")->Apply(sizes);
BENCHMARK(backward)->Name("softmax/backward")->Apply(sizes);

}  // namespace
}  // namespace scgraft
