// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/kernels/bench.h"
#include "kernels/adamw.h"

namespace scgraft {
namespace {

// Parameters: LoRA of rank 8 on Q and V of scGPT, and all of scGPT.
void sizes(benchmark::internal::Benchmark* b) {
  b->Arg(196608)->Arg(51000000)->ArgName("parameters")->UseRealTime();
}

void gradient_norm(benchmark::State& state) {
  Context ctx;
  const Tensor gradient = random_tensor({state.range(0)});
  Tensor norm({1}, DType::f64);
  for (auto _ : state) gradient_norm(ctx, gradient.view(), norm.view());
  report(state, {.bytes = gradient.nbytes(), .flops = 2 * gradient.numel()});
}
BENCHMARK(gradient_norm)->Apply(sizes);

void adamw(benchmark::State& state) {
  Context ctx;
  const int64_t n = state.range(0);
  const Tensor gradient = random_tensor({n}, 1);
  const Tensor norm = [] {
    Tensor t({1}, DType::f64);
    t.as<double>()[0] = 1;
    return t;
  }();
  Tensor p = random_tensor({n}), m({n}, DType::f32), v({n}, DType::f32);
  const AdamWSegment all{.begin = 0, .end = n, .weight_decay = 0.01};
  AdamWOptions options{.max_norm = 1, .step = 0};
  for (auto _ : state) {
    ++options.step;
    adamw(ctx, p.view(), gradient.view(), m.view(), v.view(), norm.view(), options, {&all, 1});
  }
  report(state, {.bytes = 7 * gradient.nbytes(), .flops = 15 * n});
}
BENCHMARK(adamw)->Apply(sizes);

}  // namespace
}  // namespace scgraft
