// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/kernels/bench.h"
#include "kernels/row_dropout.h"

namespace scgraft {
namespace {

void forward(benchmark::State& state) {
  Context ctx(bench_device());
  const BenchCells cells(ctx, state.range(1), kBenchSeq);
  const Tensor x = random_tensor({state.range(1), kBenchDim}, 0, bench_type(state));
  Tensor y = new_tensor(x.shape(), x.dtype());
  measure(state, ctx, {.bytes = 2 * x.nbytes(), .flops = x.numel(), .streams = true},
          [&] { row_dropout(ctx, x.view(), bench_dropout(state), &cells.packing(), y.view()); });
}

BENCHMARK(forward)->Name("row_dropout/forward")->Apply(sizes_by_tokens_and_dropout);

}  // namespace
}  // namespace scgraft
