// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/kernels/bench.h"
#include "kernels/reflections.h"

namespace scgraft {
namespace {

// Products of rows of every pair with those of the pairs before it, and sums of as many rows.
int64_t chain_flops(int64_t in, int64_t rank) { return 2 * rank * rank * in; }

void forward(benchmark::State& state) {
  Context ctx(bench_device());
  const int64_t rank = state.range(0);
  const Tensor u = random_tensor({kBenchDim, rank});
  Tensor a = new_tensor({rank, kBenchDim}), p = new_tensor({rank, kBenchDim});
  measure(state, ctx, {.bytes = 3 * u.nbytes(), .flops = chain_flops(kBenchDim, rank)},
          [&] { reflections(ctx, u.view(), a.view(), p.view()); });
}

void backward(benchmark::State& state) {
  Context ctx(bench_device());
  const int64_t rank = state.range(0);
  const Tensor u = random_tensor({kBenchDim, rank}), da = random_tensor({rank, kBenchDim}, 1),
               dp = random_tensor({rank, kBenchDim}, 2);
  Tensor du = new_tensor({kBenchDim, rank});
  measure(state, ctx, {.bytes = 5 * u.nbytes(), .flops = 4 * chain_flops(kBenchDim, rank)},
          [&] { reflections_backward(ctx, u.view(), da.view(), dp.view(), du.view()); });
}

// What scPEFT has, and a large one.
void sizes(benchmark::internal::Benchmark* b) {
  b->ArgName("rank")->UseManualTime()->Unit(benchmark::kMicrosecond);
  b->Arg(8)->Arg(32);
}
BENCHMARK(forward)->Name("reflections/forward")->Apply(sizes);
BENCHMARK(backward)->Name("reflections/backward")->Apply(sizes);

}  // namespace
}  // namespace scgraft
