// SPDX-License-Identifier: Apache-2.0
#include <vector>

#include "benchmarks/kernels/bench.h"
#include "kernels/cell_dot.h"

namespace scgraft {
namespace {

// Arguments: cells, tokens per cell, dim (scGPT's inner product of the MVC head).
void sizes(benchmark::internal::Benchmark* b) {
  b->Args({64, 1200, 512})->Args({16, 3000, 512})->Args({1, 1200, 512});
  b->ArgNames({"cells", "tokens", "dim"})->UseRealTime();
}

std::vector<int32_t> offsets_of(const benchmark::State& state) {
  std::vector<int32_t> offsets;
  for (int64_t b = 0; b <= state.range(0); ++b)
    offsets.push_back(static_cast<int32_t>(b * state.range(1)));
  return offsets;
}

void cell_dot(benchmark::State& state) {
  Context ctx;
  const std::vector<int32_t> offsets = offsets_of(state);
  const int64_t dim = state.range(2);
  const Tensor x = random_tensor({offsets.back(), dim}), c = random_tensor({state.range(0), dim});
  Tensor y({offsets.back()}, DType::f32);
  for (auto _ : state) cell_dot(ctx, x.view(), c.view(), Packing::over(offsets), y.view());
  report(state, {.bytes = x.nbytes() + c.nbytes() + y.nbytes(), .flops = 2 * x.numel()});
}
BENCHMARK(cell_dot)->Apply(sizes);

void cell_dot_backward(benchmark::State& state) {
  Context ctx;
  const std::vector<int32_t> offsets = offsets_of(state);
  const int64_t dim = state.range(2);
  const Tensor x = random_tensor({offsets.back(), dim}), c = random_tensor({state.range(0), dim});
  const Tensor dy = random_tensor({offsets.back()});
  Tensor dx(x.shape(), DType::f32), dc(c.shape(), DType::f32);
  for (auto _ : state)
    cell_dot_backward(ctx, x.view(), c.view(), dy.view(), Packing::over(offsets), dx.view(),
                      dc.view());
  report(state, {.bytes = 2 * (x.nbytes() + c.nbytes()) + dy.nbytes(), .flops = 3 * x.numel()});
}
BENCHMARK(cell_dot_backward)->Apply(sizes);

}  // namespace
}  // namespace scgraft
