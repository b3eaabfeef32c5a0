// SPDX-License-Identifier: Apache-2.0
#include <cstring>

#include "benchmarks/kernels/bench.h"
#include "kernels/adamw.h"

namespace scgraft {
namespace {

void norm(benchmark::State& state) {
  Context ctx(bench_device());
  const Tensor gradient = random_tensor({state.range(0)});
  Tensor length = new_tensor({1}, DType::f64);
  measure(state, ctx, {.bytes = gradient.nbytes(), .flops = 2 * gradient.numel()},
          [&] { gradient_norm(ctx, gradient.view(), length.view()); });
}

void update(benchmark::State& state) {
  Context ctx(bench_device());
  const int64_t n = state.range(0);
  const Tensor gradient = random_tensor({n}, 1), length = tensor_of(std::vector<double>{1});
  Tensor p = random_tensor({n}), m = new_tensor({n}), v = new_tensor({n});
  const UpdateState none;
  std::vector<uint8_t> bytes(sizeof none);
  std::memcpy(bytes.data(), &none, sizeof none);
  Tensor updates = tensor_of(bytes);
  const Tensor losses = random_tensor({64}, 2);
  const AdamWSegment all{.begin = 0, .end = n, .weight_decay = 0.01};
  const AdamWOptions options{.max_norm = 1};
  measure(state, ctx, {.bytes = 7 * gradient.nbytes(), .flops = 15 * n}, [&] {
    adamw(ctx, p.view(), gradient.view(), m.view(), v.view(), length.view(), losses.view(), options,
          {&all, 1}, updates.view());
  });
}

// LoRA of rank 8 on Q and V of scGPT, and all of scGPT.
void sizes(benchmark::internal::Benchmark* b) {
  static const std::vector<int64_t> real = {196608, 51000000}, tiny = {5000};
  b->ArgName("parameters")->UseManualTime()->Unit(benchmark::kMicrosecond);
  for (const int64_t n : by_device(real, real, tiny)) b->Arg(n);
}
BENCHMARK(norm)->Name("adamw/gradient_norm")->Apply(sizes);
BENCHMARK(update)->Name("adamw/update")->Apply(sizes);

}  // namespace
}  // namespace scgraft
