// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/kernels/copy_rate.h"
#include "kernels/add.h"

namespace scgraft {
namespace {

void bench_add(benchmark::State& state) {
  Context ctx;
  const Shape shape{state.range(0), kBenchDim};
  const Tensor a = random_tensor(shape, 1), b = random_tensor(shape, 2);
  Tensor y(shape, DType::f32);
  for (auto _ : state) add(ctx, a.view(), b.view(), y.view());
  report_against_copy(state, ctx, {.bytes = 3 * y.nbytes(), .flops = y.numel()});
}
BENCHMARK(bench_add)->Name("add")->ArgName("tokens")->Arg(4808)->Arg(19200)->UseRealTime()->Unit(
    benchmark::kMicrosecond);

}  // namespace
}  // namespace scgraft
