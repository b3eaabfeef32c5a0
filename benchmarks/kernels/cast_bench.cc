// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/kernels/bench.h"
#include "kernels/cast.h"

namespace scgraft {
namespace {

void bench_cast(benchmark::State& state) {
  Context ctx(bench_device());
  const Shape shape{state.range(0), kBenchDim};
  const Tensor x = random_tensor(shape, 1);
  Tensor y = new_tensor(shape, DType::bf16);
  measure(state, ctx, {.bytes = x.nbytes() + y.nbytes(), .streams = true},
          [&] { cast(ctx, x.view(), y.view()); });
}
void sizes(benchmark::internal::Benchmark* b) {
  b->ArgName("tokens")->UseManualTime()->Unit(benchmark::kMicrosecond);
  for (const int64_t tokens : token_counts()) b->Arg(tokens);
}
BENCHMARK(bench_cast)->Name("cast/f32_to_bf16")->Apply(sizes);

}  // namespace
}  // namespace scgraft
