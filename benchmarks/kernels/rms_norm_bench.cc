// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/kernels/bench.h"
#include "kernels/rms_norm.h"

namespace scgraft {
namespace {

struct Case {
  Context ctx{bench_device()};
  int64_t rows;
  DType type;
  Dropout dropout;
  BenchCells cells;
  Tensor x, branch, gamma, y, rstd, dx, dbranch, dgamma;

  explicit Case(const benchmark::State& state)
      : rows(state.range(1)),
        type(bench_type(state)),
        dropout(bench_dropout(state)),
        cells(ctx, rows, kBenchSeq),
        x(random_tensor({rows, kBenchDim}, 1, type)),
        branch(random_tensor({rows, kBenchDim}, 2, type)),
        gamma(tensor_of(std::vector<float>(kBenchDim, 1.25f))),
        y(new_tensor(x.shape(), type)),
        rstd(new_tensor({rows})),
        dx(new_tensor(x.shape(), type)),
        dbranch(new_tensor(x.shape(), type)),
        dgamma(new_tensor({kBenchDim})) {}
  void forward() {
    rms_norm(ctx, x.view(), branch.view(), dropout, &cells.packing(), gamma.view(), 1e-5, y.view(),
             rstd.view(), {});
  }
  // Reads dy and y, writes dx, and dbranch where dropout makes it differ.
  void backward(bool trainable) {
    const TensorView other = dropout.active() ? dbranch.view() : TensorView{};
    rms_norm_backward(ctx, branch.view(), {y.view(), {}, rstd.view()}, gamma.view(), dropout,
                      &cells.packing(), dx.view(), other, trainable ? dgamma.view() : TensorView{});
  }
  Cost backward_cost(int64_t flops_per_element) const {
    return {.bytes = (dropout.active() ? 4 : 3) * x.nbytes() + rstd.nbytes(),
            .flops = flops_per_element * x.numel(),
            .streams = true};
  }
};

void forward(benchmark::State& state) {
  Case c(state);
  measure(state, c.ctx,
          {.bytes = 3 * c.x.nbytes() + c.rstd.nbytes(), .flops = 6 * c.x.numel(), .streams = true},
          [&] { c.forward(); });
}

// Frozen norm, as in every LoRA step.
void backward(benchmark::State& state) {
  Case c(state);
  c.forward();
  measure(state, c.ctx, c.backward_cost(9), [&] { c.backward(false); });
}

void backward_trainable(benchmark::State& state) {
  Case c(state);
  c.forward();
  measure(state, c.ctx, c.backward_cost(11), [&] { c.backward(true); });
}

BENCHMARK(forward)->Name("rms_norm/forward")->Apply(sizes_by_tokens_and_dropout);
BENCHMARK(backward)->Name("rms_norm/backward")->Apply(sizes_by_tokens_and_dropout);
BENCHMARK(backward_trainable)
    ->Name("rms_norm/backward_trainable")
    ->Apply(sizes_by_tokens_and_dropout);

}  // namespace
}  // namespace scgraft
