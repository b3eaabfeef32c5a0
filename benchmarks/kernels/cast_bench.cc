// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/kernels/copy_rate.h"
#include "kernels/cast.h"

namespace scgraft {
namespace {

void bench_cast(benchmark::State& state) {
  Context ctx;
  const Shape shape{state.range(0), kBenchDim};
  const Tensor x = random_tensor(shape, 1);
  Tensor y(shape, DType::bf16);
  for (auto _ : state) cast(ctx, x.view(), y.view());
  report_against_copy(state, ctx, {.bytes = x.nbytes() + y.nbytes(), .flops = 0});
}
BENCHMARK(bench_cast)
    ->Name("cast")
    ->ArgName("tokens")
    ->Arg(4808)
    ->Arg(19200)
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace scgraft
