// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/kernels/copy_rate.h"
#include "kernels/activation.h"

namespace scgraft {
namespace {

constexpr Activation kKinds[] = {Activation::relu, Activation::leaky_relu, Activation::sigmoid,
                                 Activation::gelu};
constexpr const char* kNames[] = {"relu", "leaky_relu", "sigmoid", "gelu"};

void bench_forward(benchmark::State& state) {
  Context ctx;
  const Shape shape{state.range(0), kBenchDim};
  const Tensor x = random_tensor(shape);
  Tensor y(shape, DType::f32);
  const Activation kind = kKinds[state.range(1)];
  for (auto _ : state) activation(ctx, kind, x.view(), y.view());
  state.SetLabel(kNames[state.range(1)]);
  report_against_copy(state, ctx, {.bytes = 2 * y.nbytes(), .flops = y.numel()});
}

void bench_backward(benchmark::State& state) {
  Context ctx;
  const Shape shape{state.range(0), kBenchDim};
  const Tensor y = random_tensor(shape, 1), dy = random_tensor(shape, 2);
  Tensor dx(shape, DType::f32);
  const Activation kind = kKinds[state.range(1)];
  for (auto _ : state) activation_backward(ctx, kind, y.view(), dy.view(), dx.view());
  state.SetLabel(kNames[state.range(1)]);
  report_against_copy(state, ctx, {.bytes = 3 * y.nbytes(), .flops = y.numel()});
}

void sizes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"tokens", "kind"})->UseRealTime()->Unit(benchmark::kMicrosecond);
  for (int64_t tokens : {4808, 19200})
    for (int64_t kind : {0, 1, 2, 3}) b->Args({tokens, kind});
}
BENCHMARK(bench_forward)->Name("activation")->Apply(sizes);
BENCHMARK(bench_backward)->Name("activation_backward")->Apply(sizes);

}  // namespace
}  // namespace scgraft
