// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/kernels/bench.h"
#include "kernels/cross_entropy.h"

namespace scgraft {
namespace {

// Loss and gradient of cell types (64 rows) and of genes of a 25426-word vocabulary.
// An exponential counts as one operation.
void cross_entropy(benchmark::State& state) {
  Context ctx;
  const int64_t rows = state.range(0), classes = state.range(1);
  const Tensor logits = random_tensor({rows, classes});
  Tensor labels({rows}, DType::i32), loss({rows}, DType::f32), dlogits({rows, classes}, DType::f32);
  for (int64_t b = 0; b < rows; ++b)
    labels.as<int32_t>()[b] = static_cast<int32_t>(7 * b % classes);
  for (auto _ : state)
    cross_entropy(ctx, logits.view(), std::as_const(labels).view(), {}, 1.0 / 64, loss.view(),
                  dlogits.view());
  report(state, {.bytes = 2 * logits.nbytes() + labels.nbytes() + loss.nbytes(),
                 .flops = 6 * logits.numel()});
}
BENCHMARK(cross_entropy)
    ->Args({64, 18})
    ->Args({64, 164})
    ->Args({1024, 25426})
    ->ArgNames({"rows", "classes"})
    ->UseRealTime();

}  // namespace
}  // namespace scgraft
