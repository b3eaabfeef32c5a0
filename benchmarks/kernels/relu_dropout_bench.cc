// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/kernels/copy_rate.h"
#include "kernels/relu_dropout.h"

namespace scgraft {
namespace {

void bench_forward(benchmark::State& state) {
  Context ctx;
  const int64_t rows = state.range(0);
  const BenchCells cells(rows, kBenchSeq);
  const Packing packing = cells.packing();
  const Tensor x = random_tensor({rows, kBenchDim});
  Tensor y({rows, kBenchDim}, DType::f32), bits({rows, kBenchDim / 8}, DType::u8);
  for (auto _ : state)
    relu_dropout(ctx, x.view(), bench_dropout(state), &packing, y.view(), bits.view());
  report_against_copy(state, ctx, {.bytes = 2 * x.nbytes() + bits.nbytes(), .flops = x.numel()});
}

void bench_backward(benchmark::State& state) {
  Context ctx;
  const int64_t rows = state.range(0);
  const BenchCells cells(rows, kBenchSeq);
  const Packing packing = cells.packing();
  const Tensor dy = random_tensor({rows, kBenchDim});
  Tensor dx({rows, kBenchDim}, DType::f32), bits({rows, kBenchDim / 8}, DType::u8);
  relu_dropout(ctx, dy.view(), bench_dropout(state), &packing, dx.view(), bits.view());
  for (auto _ : state)
    relu_dropout_backward(ctx, dy.view(), bits.view(), bench_dropout(state), dx.view());
  report_against_copy(state, ctx, {.bytes = 2 * dy.nbytes() + bits.nbytes(), .flops = dy.numel()});
}

BENCHMARK(bench_forward)->Name("relu_dropout")->Apply(token_counts);
BENCHMARK(bench_backward)->Name("relu_dropout_backward")->Apply(token_counts);

}  // namespace
}  // namespace scgraft
