// SPDX-License-Identifier: Apache-2.0
#include <vector>

#include "benchmarks/kernels/bench.h"
#include "kernels/masked_mse.h"

namespace scgraft {
namespace {

// Arguments: cells, tokens per cell; two tokens in five count.
void masked_mse(benchmark::State& state) {
  Context ctx;
  std::vector<int32_t> offsets;
  for (int64_t b = 0; b <= state.range(0); ++b)
    offsets.push_back(static_cast<int32_t>(b * state.range(1)));
  const int64_t tokens = offsets.back();
  const Tensor x = random_tensor({tokens}), target = random_tensor({tokens}, 1);
  Tensor mask({tokens}, DType::u8), loss({state.range(0)}, DType::f32), dx({tokens}, DType::f32);
  RandomStream stream(1, RandomUse::masking);
  for (int64_t t = 0; t < tokens; ++t) mask.as<uint8_t>()[t] = stream.below(5) < 2;
  for (auto _ : state)
    masked_mse(ctx, x.view(), target.view(), std::as_const(mask).view(), Packing::over(offsets),
               1.0 / static_cast<double>(tokens), loss.view(), dx.view());
  report(state, {.bytes = 3 * x.nbytes() + mask.nbytes() + loss.nbytes(), .flops = 4 * tokens});
}
BENCHMARK(masked_mse)
    ->Args({64, 1200})
    ->Args({1, 1200})
    ->ArgNames({"cells", "tokens"})
    ->UseRealTime();

}  // namespace
}  // namespace scgraft
