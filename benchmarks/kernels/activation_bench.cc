// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/kernels/bench.h"
#include "kernels/activation.h"

namespace scgraft {
namespace {

constexpr Activation kKinds[] = {Activation::relu, Activation::leaky_relu, Activation::sigmoid,
                                 Activation::tanh, Activation::gelu};
constexpr const char* kNames[] = {"relu", "leaky_relu", "sigmoid", "tanh", "gelu"};

void forward(benchmark::State& state) {
  Context ctx(bench_device());
  const Shape shape{state.range(1), kBenchDim};
  const Tensor x = random_tensor(shape, 0, bench_type(state));
  Tensor y = new_tensor(shape, x.dtype());
  const Activation kind = kKinds[state.range(2)];
  state.SetLabel(kNames[state.range(2)]);
  measure(state, ctx, {.bytes = 2 * y.nbytes(), .flops = y.numel(), .streams = true},
          [&] { activation(ctx, kind, x.view(), y.view()); });
}

void backward(benchmark::State& state) {
  Context ctx(bench_device());
  const Shape shape{state.range(1), kBenchDim};
  const DType type = bench_type(state);
  const Tensor y = random_tensor(shape, 1, type), dy = random_tensor(shape, 2, type);
  Tensor dx = new_tensor(shape, type);
  const Activation kind = kKinds[state.range(2)];
  state.SetLabel(kNames[state.range(2)]);
  measure(state, ctx, {.bytes = 3 * y.nbytes(), .flops = y.numel(), .streams = true},
          [&] { activation_backward(ctx, kind, y.view(), dy.view(), dx.view()); });
}

void sizes(benchmark::internal::Benchmark* b) {
  std::vector<std::vector<int64_t>> lists;
  for (const int64_t tokens : token_counts())
    for (const int64_t kind : {0, 1, 2, 3, 4}) lists.push_back({tokens, kind});
  in_types(b, {"tokens", "kind"}, lists);
}
BENCHMARK(forward)->Name("activation/forward")->Apply(sizes);
BENCHMARK(backward)->Name("activation/backward")->Apply(sizes);

}  // namespace
}  // namespace scgraft
