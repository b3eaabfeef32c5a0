// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/kernels/bench.h"
#include "kernels/ecs.h"

namespace scgraft {
namespace {

// Loss and gradient of a batch. The cosine matrix is symmetric: one half of it is unavoidable, and
// the gradient is a product with all of it.
void ecs(benchmark::State& state) {
  Context ctx;
  const int64_t cells = state.range(0), dim = state.range(1);
  const Tensor x = random_tensor({cells, dim});
  Tensor loss({1}, DType::f32), dx({cells, dim}, DType::f32);
  for (auto _ : state) ecs(ctx, x.view(), 0.8, 10, loss.view(), dx.view());
  report(state, {.bytes = 3 * x.nbytes(), .flops = 3 * cells * cells * dim});
}
BENCHMARK(ecs)
    ->Args({32, 512})
    ->Args({64, 512})
    ->Args({256, 512})
    ->ArgNames({"cells", "dim"})
    ->UseRealTime();

}  // namespace
}  // namespace scgraft
