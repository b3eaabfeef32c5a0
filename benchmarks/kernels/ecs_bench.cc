// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/kernels/bench.h"
#include "kernels/ecs.h"

namespace scgraft {
namespace {

// Loss and gradient of a batch. The cosine matrix is symmetric: one half of it is unavoidable, and
// the gradient is a product with all of it.
void bench_ecs(benchmark::State& state) {
  Context ctx(bench_device());
  const int64_t cells = state.range(0);
  const Tensor x = random_tensor({cells, kBenchDim});
  Tensor loss = new_tensor({1}), dx = new_tensor(x.shape());
  measure(state, ctx, {.bytes = 3 * x.nbytes(), .flops = 3 * cells * cells * kBenchDim},
          [&] { ecs(ctx, x.view(), 0.8, 10, loss.view(), dx.view()); });
}
void sizes(benchmark::internal::Benchmark* b) {
  static const std::vector<int64_t> real = {32, 64, 256}, tiny = {5};
  b->ArgName("cells")->UseManualTime()->Unit(benchmark::kMicrosecond);
  for (const int64_t cells : by_device(real, real, tiny)) b->Arg(cells);
}
BENCHMARK(bench_ecs)->Name("ecs/loss_and_gradient")->Apply(sizes);

}  // namespace
}  // namespace scgraft
