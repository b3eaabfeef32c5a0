// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/kernels/bench.h"
#include "kernels/cell_dot.h"

namespace scgraft {
namespace {

struct Case {
  Context ctx{bench_device()};
  BenchCells cells;
  Tensor x, c, y, dx, dc;

  explicit Case(const benchmark::State& state)
      : cells(ctx, state.range(1) * state.range(2), state.range(2)),
        x(random_tensor({state.range(1) * state.range(2), kBenchDim}, 0, bench_type(state))),
        c(random_tensor({state.range(1), kBenchDim}, 1, bench_type(state))),
        y(random_tensor({x.dim(0)}, 2, bench_type(state))),
        dx(new_tensor(x.shape(), x.dtype())),
        dc(new_tensor(c.shape(), c.dtype())) {}
};

void forward(benchmark::State& state) {
  Case t(state);
  measure(state, t.ctx,
          {.bytes = t.x.nbytes() + t.c.nbytes() + t.y.nbytes(), .flops = 2 * t.x.numel()}, [&] {
            cell_dot(t.ctx, std::as_const(t.x).view(), std::as_const(t.c).view(), t.cells.packing(),
                     t.y.view());
          });
}

void backward(benchmark::State& state) {
  Case t(state);
  measure(
      state, t.ctx,
      {.bytes = 2 * (t.x.nbytes() + t.c.nbytes()) + t.y.nbytes(), .flops = 3 * t.x.numel()}, [&] {
        cell_dot_backward(t.ctx, std::as_const(t.x).view(), std::as_const(t.c).view(),
                          std::as_const(t.y).view(), t.cells.packing(), t.dx.view(), t.dc.view());
      });
}

// The inner product of scGPT's MVC head.
void sizes(benchmark::internal::Benchmark* b) {
  static const std::vector<std::vector<int64_t>> real = {{64, 1200}, {16, 3000}, {1, 1200}},
                                                 tiny = {{2, 70}};
  in_types(b, {"cells", "tokens"}, by_device(real, real, tiny));
}
BENCHMARK(forward)->Name("cell_dot/forward")->Apply(sizes);
BENCHMARK(backward)->Name("cell_dot/backward")->Apply(sizes);

}  // namespace
}  // namespace scgraft
