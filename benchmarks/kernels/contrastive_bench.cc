// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/kernels/bench.h"
#include "kernels/contrastive.h"

namespace scgraft {
namespace {

void bench_contrastive(benchmark::State& state) {
  Context ctx(bench_device());
  const int64_t cells = state.range(0);
  const Tensor x = random_tensor({cells, kBenchDim}, 1), y = random_tensor({cells, kBenchDim}, 2);
  Tensor loss = new_tensor({1}), dx = new_tensor(x.shape()), dy = new_tensor(x.shape());
  measure(state, ctx, {.bytes = 4 * x.nbytes(), .flops = 6 * cells * cells * kBenchDim},
          [&] { contrastive(ctx, x.view(), y.view(), 0.5, 1, loss.view(), dx.view(), dy.view()); });
}
void sizes(benchmark::internal::Benchmark* b) {
  static const std::vector<int64_t> real = {8, 64}, tiny = {5};
  b->ArgName("cells")->UseManualTime()->Unit(benchmark::kMicrosecond);
  for (const int64_t cells : by_device(real, real, tiny)) b->Arg(cells);
}
BENCHMARK(bench_contrastive)->Name("contrastive/loss_and_gradient")->Apply(sizes);

}  // namespace
}  // namespace scgraft
