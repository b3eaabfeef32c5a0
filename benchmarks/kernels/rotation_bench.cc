// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/kernels/bench.h"
#include "kernels/rotation.h"

namespace scgraft {
namespace {

// Of one projection of the width kBenchDim; state.range(0) blocks.
struct Case {
  int64_t blocks, n;
  Tensor skew, q, dq, dskew, w, y;

  explicit Case(int64_t count)
      : blocks(count),
        n(kBenchDim / count),
        skew(random_tensor({blocks, n * (n - 1) / 2})),
        q(new_tensor({blocks, n, n})),
        dq(random_tensor({blocks, n, n}, 1)),
        dskew(new_tensor(skew.shape())),
        w(random_tensor({kBenchDim, kBenchDim}, 2)),
        y(new_tensor(w.shape())) {}
  int64_t cube() const { return blocks * n * n * n; }
};

void transform(benchmark::State& state) {
  Context ctx(bench_device());
  Case c(state.range(0));
  measure(state, ctx, {.bytes = c.skew.nbytes() + c.q.nbytes(), .flops = 2 * c.cube()},
          [&] { cayley(ctx, c.skew.view(), c.q.view()); });
}

void transform_backward(benchmark::State& state) {
  Context ctx(bench_device());
  Case c(state.range(0));
  cayley(ctx, c.skew.view(), c.q.view());
  measure(state, ctx, {.bytes = 2 * c.q.nbytes() + 2 * c.skew.nbytes(), .flops = 4 * c.cube()},
          [&] { cayley_backward(ctx, c.q.view(), c.dq.view(), c.dskew.view()); });
}

void columns(benchmark::State& state) {
  Context ctx(bench_device());
  Case c(state.range(0));
  cayley(ctx, c.skew.view(), c.q.view());
  measure(state, ctx, {.bytes = 2 * c.w.nbytes() + c.q.nbytes(), .flops = 2 * c.w.numel() * c.n},
          [&] { rotate_columns(ctx, c.w.view(), c.q.view(), c.y.view()); });
}

void columns_backward(benchmark::State& state) {
  Context ctx(bench_device());
  Case c(state.range(0));
  measure(state, ctx, {.bytes = 2 * c.w.nbytes() + c.q.nbytes(), .flops = 2 * c.w.numel() * c.n},
          [&] { rotate_columns_backward(ctx, c.w.view(), c.w.view(), c.dq.view()); });
}

void bound(benchmark::State& state) {
  Context ctx(bench_device());
  Case c(state.range(0));
  measure(state, ctx, {.bytes = c.skew.nbytes(), .flops = 2 * c.skew.numel()},
          [&] { bound_rotation(ctx, 1e6, c.skew.view()); });
}

// What scPEFT has, and blocks of 32.
void sizes(benchmark::internal::Benchmark* b) {
  b->ArgName("blocks")->UseManualTime()->Unit(benchmark::kMicrosecond);
  b->Arg(4)->Arg(16);
}
BENCHMARK(transform)->Name("rotation/cayley")->Apply(sizes);
BENCHMARK(transform_backward)->Name("rotation/cayley_backward")->Apply(sizes);
BENCHMARK(columns)->Name("rotation/columns")->Apply(sizes);
BENCHMARK(columns_backward)->Name("rotation/columns_backward")->Apply(sizes);
BENCHMARK(bound)->Name("rotation/bound")->Apply(sizes);

}  // namespace
}  // namespace scgraft
