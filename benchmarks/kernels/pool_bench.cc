// SPDX-License-Identifier: Apache-2.0
#include <vector>

#include "benchmarks/kernels/bench.h"
#include "kernels/pool.h"

namespace scgraft {
namespace {

// Arguments: cells, tokens per cell, dim (scGPT: 512), kind.
void sizes(benchmark::internal::Benchmark* b) {
  for (int64_t kind : {0, 1, 2}) {
    b->Args({64, 1200, 512, kind});
    b->Args({1, 1200, 512, kind});
  }
  b->ArgNames({"cells", "tokens", "dim", "kind"})->UseRealTime();
}

struct Setup {
  explicit Setup(const benchmark::State& state)
      : cells(state.range(0)), length(state.range(1)), dim(state.range(2)) {
    for (int64_t b = 0; b <= cells; ++b) offsets.push_back(static_cast<int32_t>(b * length));
  }
  int64_t cells, length, dim;
  std::vector<int32_t> offsets;
};

void pool(benchmark::State& state) {
  const Setup s(state);
  const Pooling kind = static_cast<Pooling>(state.range(3));
  Context ctx;
  const int64_t tokens = s.cells * s.length;
  const Tensor x = random_tensor({tokens, s.dim}), weight = random_tensor({tokens});
  Tensor y({s.cells, s.dim}, DType::f32);
  const ConstTensorView w = kind == Pooling::weighted ? weight.view() : ConstTensorView();
  for (auto _ : state) pool(ctx, kind, x.view(), w, Packing::over(s.offsets), y.view());
  if (kind == Pooling::cls)
    report(state, {.bytes = 2 * y.nbytes()});
  else
    report(state, {.bytes = x.nbytes() + y.nbytes() + (w.empty() ? 0 : w.nbytes()),
                   .flops = (w.empty() ? 1 : 2) * x.numel()});
}
BENCHMARK(pool)->Apply(sizes);

void pool_backward(benchmark::State& state) {
  const Setup s(state);
  const Pooling kind = static_cast<Pooling>(state.range(3));
  Context ctx;
  const int64_t tokens = s.cells * s.length;
  const Tensor dy = random_tensor({s.cells, s.dim}), weight = random_tensor({tokens});
  Tensor dx({tokens, s.dim}, DType::f32);
  const ConstTensorView w = kind == Pooling::weighted ? weight.view() : ConstTensorView();
  for (auto _ : state) pool_backward(ctx, kind, dy.view(), w, Packing::over(s.offsets), dx.view());
  report(state, {.bytes = dx.nbytes() + dy.nbytes() + (w.empty() ? 0 : w.nbytes()),
                 .flops = kind == Pooling::cls ? 0 : dx.numel()});
}
BENCHMARK(pool_backward)->Apply(sizes);

}  // namespace
}  // namespace scgraft
