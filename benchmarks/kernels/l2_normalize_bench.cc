// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/kernels/bench.h"
#include "kernels/l2_normalize.h"

namespace scgraft {
namespace {

void forward(benchmark::State& state) {
  Context ctx(bench_device());
  const Tensor x = random_tensor({state.range(1), kBenchDim}, 0, bench_type(state));
  Tensor y = new_tensor(x.shape(), x.dtype()), norm = new_tensor({state.range(1)});
  measure(state, ctx, {.bytes = 2 * x.nbytes() + norm.nbytes(), .flops = 3 * x.numel()},
          [&] { l2_normalize(ctx, x.view(), y.view(), norm.view()); });
}

void backward(benchmark::State& state) {
  Context ctx(bench_device());
  const Tensor y = random_tensor({state.range(1), kBenchDim}, 0, bench_type(state)),
               dy = random_tensor(y.shape(), 1, y.dtype());
  const Tensor norm = tensor_of(std::vector<float>(static_cast<size_t>(state.range(1)), 1.0f));
  Tensor dx = new_tensor(y.shape(), y.dtype());
  measure(state, ctx, {.bytes = 3 * y.nbytes() + norm.nbytes(), .flops = 5 * y.numel()},
          [&] { l2_normalize_backward(ctx, y.view(), norm.view(), dy.view(), dx.view()); });
}

// Cells of a batch, cells of a data set.
void sizes(benchmark::internal::Benchmark* b) {
  static const std::vector<std::vector<int64_t>> real = {{64}, {20000}}, tiny = {{9}};
  in_types(b, {"rows"}, by_device(real, real, tiny));
}
BENCHMARK(forward)->Name("l2_normalize/forward")->Apply(sizes);
BENCHMARK(backward)->Name("l2_normalize/backward")->Apply(sizes);

}  // namespace
}  // namespace scgraft
