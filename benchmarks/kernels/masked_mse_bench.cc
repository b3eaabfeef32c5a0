// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/kernels/bench.h"
#include "kernels/masked_mse.h"

namespace scgraft {
namespace {

// Loss and gradient; two tokens in five count.
void bench_masked_mse(benchmark::State& state) {
  Context ctx(bench_device());
  const int64_t count = state.range(0), tokens = count * state.range(1);
  const BenchCells cells(ctx, tokens, state.range(1));
  const Tensor x = random_tensor({tokens}), target = random_tensor({tokens}, 1);
  std::vector<uint8_t> hidden;
  RandomStream stream(1, RandomUse::masking);
  for (int64_t t = 0; t < tokens; ++t) hidden.push_back(stream.below(5) < 2);
  const Tensor mask = tensor_of(hidden);
  Tensor loss = new_tensor({count}), dx = new_tensor({tokens});
  measure(state, ctx,
          {.bytes = 3 * x.nbytes() + mask.nbytes() + loss.nbytes(), .flops = 4 * tokens}, [&] {
            masked_mse(ctx, x.view(), target.view(), mask.view(), cells.packing(),
                       1.0 / static_cast<double>(tokens), loss.view(), dx.view());
          });
}
void sizes(benchmark::internal::Benchmark* b) {
  static const std::vector<std::vector<int64_t>> real = {{64, 1200}, {1, 1200}}, tiny = {{2, 70}};
  b->ArgNames({"cells", "tokens"})->UseManualTime()->Unit(benchmark::kMicrosecond);
  for (const std::vector<int64_t>& size : by_device(real, real, tiny)) b->Args(size);
}
BENCHMARK(bench_masked_mse)->Name("masked_mse/loss_and_gradient")->Apply(sizes);

}  // namespace
}  // namespace scgraft
