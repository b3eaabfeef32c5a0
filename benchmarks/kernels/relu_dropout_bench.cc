// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/kernels/bench.h"
#include "kernels/relu_dropout.h"

namespace scgraft {
namespace {

struct Case {
  Context ctx{bench_device()};
  Dropout dropout;
  BenchCells cells;
  Tensor x, y, bits;

  explicit Case(const benchmark::State& state)
      : dropout(bench_dropout(state)),
        cells(ctx, state.range(1), kBenchSeq),
        x(random_tensor({state.range(1), kBenchDim}, 0, bench_type(state))),
        y(new_tensor(x.shape(), x.dtype())),
        bits(new_tensor({state.range(1), kBenchDim / 8}, DType::u8)) {}
  void forward() { relu_dropout(ctx, x.view(), dropout, &cells.packing(), y.view(), bits.view()); }
  Cost cost() const {
    return {.bytes = 2 * x.nbytes() + bits.nbytes(), .flops = x.numel(), .streams = true};
  }
};

void forward(benchmark::State& state) {
  Case c(state);
  measure(state, c.ctx, c.cost(), [&] { c.forward(); });
}

void backward(benchmark::State& state) {
  Case c(state);
  c.forward();
  measure(state, c.ctx, c.cost(),
          [&] { relu_dropout_backward(c.ctx, c.x.view(), c.bits.view(), c.dropout, c.y.view()); });
}

BENCHMARK(forward)->Name("relu_dropout/forward")->Apply(sizes_by_tokens_and_dropout);
BENCHMARK(backward)->Name("relu_dropout/backward")->Apply(sizes_by_tokens_and_dropout);

}  // namespace
}  // namespace scgraft
