// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/kernels/bench.h"
#include "kernels/add.h"

namespace scgraft {
namespace {

void bench_add(benchmark::State& state) {
  Context ctx(bench_device());
  const Shape shape{state.range(1), kBenchDim};
  const DType type = bench_type(state);
  const Tensor a = random_tensor(shape, 1, type), b = random_tensor(shape, 2, type);
  Tensor y = new_tensor(shape, type);
  measure(state, ctx, {.bytes = 3 * y.nbytes(), .flops = y.numel(), .streams = true},
          [&] { add(ctx, a.view(), b.view(), y.view()); });
}
BENCHMARK(bench_add)->Name("add/all")->Apply(sizes_by_tokens);

}  // namespace
}  // namespace scgraft
