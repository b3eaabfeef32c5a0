// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/kernels/bench.h"
#include "kernels/l2_normalize.h"

namespace scgraft {
namespace {

// Arguments: rows (cells of a batch, cells of a data set), dim.
void sizes(benchmark::internal::Benchmark* b) {
  b->Args({64, 512})->Args({20000, 512})->ArgNames({"rows", "dim"})->UseRealTime();
}

void l2_normalize(benchmark::State& state) {
  Context ctx;
  const Tensor x = random_tensor({state.range(0), state.range(1)});
  Tensor y(x.shape(), DType::f32), norm({state.range(0)}, DType::f32);
  for (auto _ : state) l2_normalize(ctx, x.view(), y.view(), norm.view());
  report(state, {.bytes = 2 * x.nbytes() + norm.nbytes(), .flops = 3 * x.numel()});
}
BENCHMARK(l2_normalize)->Apply(sizes);

void l2_normalize_backward(benchmark::State& state) {
  Context ctx;
  const Tensor y = random_tensor({state.range(0), state.range(1)}),
               dy = random_tensor(y.shape(), 1);
  Tensor dx(y.shape(), DType::f32), norm({state.range(0)}, DType::f32);
  for (int64_t r = 0; r < state.range(0); ++r) norm.as<float>()[r] = 1;
  for (auto _ : state)
    l2_normalize_backward(ctx, y.view(), std::as_const(norm).view(), dy.view(), dx.view());
  report(state, {.bytes = 3 * y.nbytes() + norm.nbytes(), .flops = 5 * y.numel()});
}
BENCHMARK(l2_normalize_backward)->Apply(sizes);

}  // namespace
}  // namespace scgraft
