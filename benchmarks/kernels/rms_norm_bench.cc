// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/kernels/copy_rate.h"
#include "kernels/rms_norm.h"

namespace scgraft {
namespace {

struct Case {
  Context ctx;
  int64_t rows;
  BenchCells cells;
  Packing packing;
  Tensor x, branch, gamma, y, rstd, dx, dbranch, dgamma;

  explicit Case(const benchmark::State& state)
      : rows(state.range(0)),
        cells(rows, kBenchSeq),
        packing(cells.packing()),
        x(random_tensor({rows, kBenchDim}, 1)),
        branch(random_tensor({rows, kBenchDim}, 2)),
        gamma(random_tensor({kBenchDim}, 3)),
        y({rows, kBenchDim}, DType::f32),
        rstd({rows}, DType::f32),
        dx({rows, kBenchDim}, DType::f32),
        dbranch({rows, kBenchDim}, DType::f32),
        dgamma({kBenchDim}, DType::f32) {
    for (int64_t f = 0; f < kBenchDim; ++f) gamma.as<float>()[f] += 1;
  }
  void forward(Dropout dropout) {
    rms_norm(ctx, x.view(), branch.view(), dropout, &packing, gamma.view(), 1e-5, y.view(),
             rstd.view(), {});
  }
};

void bench_forward(benchmark::State& state) {
  Case c(state);
  for (auto _ : state) c.forward(bench_dropout(state));
  report_against_copy(state, c.ctx,
                      {.bytes = 3 * c.x.nbytes() + c.rstd.nbytes(), .flops = 6 * c.x.numel()});
}

// Frozen norm, as in every LoRA step: reads dy and y, writes dx, and dbranch where dropout makes
// it differ.
void bench_backward(benchmark::State& state) {
  Case c(state);
  const Dropout dropout = bench_dropout(state);
  c.forward(dropout);
  const TensorView dbranch = dropout.active() ? c.dbranch.view() : TensorView{};
  for (auto _ : state)
    rms_norm_backward(c.ctx, c.branch.view(), {c.y.view(), {}, c.rstd.view()}, c.gamma.view(),
                      dropout, &c.packing, c.dx.view(), dbranch, {});
  report_against_copy(state, c.ctx,
                      {.bytes = (dropout.active() ? 4 : 3) * c.x.nbytes() + c.rstd.nbytes(),
                       .flops = 9 * c.x.numel()});
}

void bench_backward_trainable(benchmark::State& state) {
  Case c(state);
  const Dropout dropout = bench_dropout(state);
  c.forward(dropout);
  const TensorView dbranch = dropout.active() ? c.dbranch.view() : TensorView{};
  for (auto _ : state)
    rms_norm_backward(c.ctx, c.branch.view(), {c.y.view(), {}, c.rstd.view()}, c.gamma.view(),
                      dropout, &c.packing, c.dx.view(), dbranch, c.dgamma.view());
  report_against_copy(state, c.ctx,
                      {.bytes = (dropout.active() ? 4 : 3) * c.x.nbytes() + c.rstd.nbytes(),
                       .flops = 11 * c.x.numel()});
}

BENCHMARK(bench_forward)->Name("rms_norm")->Apply(token_counts);
BENCHMARK(bench_backward)->Name("rms_norm_backward")->Apply(token_counts);
BENCHMARK(bench_backward_trainable)->Name("rms_norm_backward_trainable")->Apply(token_counts);

}  // namespace
}  // namespace scgraft
