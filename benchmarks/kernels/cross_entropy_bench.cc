// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/kernels/bench.h"
#include "kernels/cross_entropy.h"

namespace scgraft {
namespace {

// Loss and gradient. An exponential counts as one operation.
void bench_cross_entropy(benchmark::State& state) {
  Context ctx(bench_device());
  const int64_t rows = state.range(0), classes = state.range(1);
  const Tensor logits = random_tensor({rows, classes});
  std::vector<int32_t> wanted;
  for (int64_t b = 0; b < rows; ++b) wanted.push_back(static_cast<int32_t>(7 * b % classes));
  const Tensor labels = tensor_of(wanted);
  Tensor loss = new_tensor({rows}), dlogits = new_tensor(logits.shape());
  measure(
      state, ctx,
      {.bytes = 2 * logits.nbytes() + labels.nbytes() + loss.nbytes(), .flops = 6 * logits.numel()},
      [&] {
        cross_entropy(ctx, logits.view(), labels.view(), {}, 1.0 / 64, loss.view(), dlogits.view());
      });
}
// Cell types of a batch, and genes of a 25,426-word vocabulary.
void sizes(benchmark::internal::Benchmark* b) {
  static const std::vector<std::vector<int64_t>> real = {{64, 18}, {64, 164}, {1024, 25426}},
                                                 tiny = {{3, 18}};
  b->ArgNames({"rows", "classes"})->UseManualTime()->Unit(benchmark::kMicrosecond);
  for (const std::vector<int64_t>& size : by_device(real, real, tiny)) b->Args(size);
}
BENCHMARK(bench_cross_entropy)->Name("cross_entropy/loss_and_gradient")->Apply(sizes);

}  // namespace
}  // namespace scgraft
