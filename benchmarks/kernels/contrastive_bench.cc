// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/kernels/bench.h"
#include "kernels/contrastive.h"

namespace scgraft {
namespace {

void contrastive_step(benchmark::State& state) {
  Context ctx;
  const int64_t cells = state.range(0), dim = 512;
  const Tensor x = random_tensor({cells, dim}, 1), y = random_tensor({cells, dim}, 2);
  Tensor loss({1}, DType::f32), dx({cells, dim}, DType::f32), dy({cells, dim}, DType::f32);
  for (auto _ : state)
    contrastive(ctx, x.view(), y.view(), 0.5, 1, loss.view(), dx.view(), dy.view());
  report(state, {.bytes = 4 * x.nbytes(), .flops = 6 * cells * cells * dim});
}
BENCHMARK(contrastive_step)->Arg(8)->Arg(64)->UseRealTime();

}  // namespace
}  // namespace scgraft
