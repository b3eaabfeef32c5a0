// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "benchmarks/kernels/bench.h"
#include "kernels/linear.h"

namespace scgraft {
namespace {

// Arguments: type, rows, in, out, rank of one low-rank term (0: frozen product alone).
struct Case {
  Context ctx{bench_device()};
  int64_t rows, in, out, rank;
  DType type;
  BenchCells cells;
  Tensor x, w, a, b, y, da, db, dw;
  LowRank term;

  explicit Case(const benchmark::State& state)
      : rows(state.range(1)),
        in(state.range(2)),
        out(state.range(3)),
        rank(state.range(4)),
        // On the CPU a bf16 product takes f32 rows.
        type(ctx.device().is_cpu() ? DType::f32 : bench_type(state)),
        cells(ctx, rows, kBenchSeq),
        x(random_tensor({rows, in}, 1, type)),
        w(random_tensor({out, in}, 2)),
        a(random_tensor({std::max<int64_t>(rank, 1), in}, 3)),
        b(random_tensor({out, std::max<int64_t>(rank, 1)}, 4)),
        y(random_tensor({rows, out}, 5, type)),
        da(new_tensor(a.shape())),
        db(new_tensor(b.shape())),
        dw(new_tensor(w.shape())),
        term{a.view(), b.view(), 1, {}} {}
  std::span<const LowRank> terms() const { return {&term, rank > 0 ? size_t{1} : size_t{0}}; }
  PackedWeight packed(const benchmark::State& state, PackedFor use) {
    PackedWeight weight;
    weight.pack(ctx, std::as_const(w).view(), use, bench_type(state));
    return weight;
  }
  Cost cost(const benchmark::State& state) const {
    const DType product = bench_type(state);
    return {.bytes = x.nbytes() + y.nbytes() + w.numel() * size_of(product),
            .flops = 2 * rows * (in * out + rank * (in + out)),
            .type = product};
  }
};

void forward(benchmark::State& state) {
  Case c(state);
  const PackedWeight weight = c.packed(state, PackedFor::forward);
  measure(state, c.ctx, c.cost(state), [&] {
    linear(c.ctx, std::as_const(c.x).view(), weight, {}, c.terms(), nullptr, c.y.view());
  });
}

void backward_input(benchmark::State& state) {
  Case c(state);
  const PackedWeight weight = c.packed(state, PackedFor::backward_input);
  measure(state, c.ctx, c.cost(state), [&] {
    linear_backward_input(c.ctx, std::as_const(c.y).view(), weight, c.terms(), nullptr, false,
                          c.x.view());
  });
}

void low_rank(benchmark::State& state) {
  Case c(state);
  measure(state, c.ctx,
          {.bytes = c.x.nbytes() + c.y.nbytes(),
           .flops = 4 * c.rows * c.rank * (c.in + c.out),
           .type = bench_type(state)},
          [&] {
            low_rank_backward(c.ctx, std::as_const(c.x).view(), std::as_const(c.y).view(), c.term,
                              c.cells.packing(), c.da.view(), c.db.view());
          });
}

void weight_gradient(benchmark::State& state) {
  Case c(state);
  measure(state, c.ctx,
          {.bytes = c.x.nbytes() + c.y.nbytes() + c.dw.nbytes(),
           .flops = 2 * c.rows * c.in * c.out,
           .type = bench_type(state)},
          [&] {
            linear_backward_weight(c.ctx, std::as_const(c.x).view(), std::as_const(c.y).view(),
                                   c.cells.packing(), c.dw.view(), {});
          });
}

using Sizes = std::vector<std::vector<int64_t>>;
// scGPT (q, k and v together, and alone), Geneformer of 12 layers and of 316M, LLaMA 7B; a few
// rows.
const Sizes& products() {
  static const Sizes cpu = {
      {4808, 512, 512, 0}, {4808, 512, 512, 8}, {4808, 512, 1536, 0}, {601, 512, 512, 8}};
  static const Sizes gpu = {
      {600, 512, 512, 0},     {600, 512, 512, 8},      {4800, 512, 512, 0},
      {4800, 512, 512, 8},    {76800, 512, 512, 0},    {76800, 512, 512, 8},
      {76800, 512, 1536, 0},  {76800, 512, 1536, 16},  {65536, 768, 2304, 0},
      {65536, 768, 2304, 16}, {16384, 1152, 3456, 16}, {16384, 1152, 4608, 0},
      {2048, 4096, 12288, 0}, {2048, 4096, 12288, 16}, {2048, 4096, 11008, 64}};
  static const Sizes tiny = {{70, 64, 72, 0}, {70, 64, 72, 8}};
  return by_device(cpu, gpu, tiny);
}
void product_sizes(benchmark::internal::Benchmark* b) {
  in_types(b, {"rows", "in", "out", "rank"}, products());
  if (bench_on() == BenchOn::cpu) b->Args({1, 4808, 512, 512, 0});
}
void low_rank_sizes(benchmark::internal::Benchmark* b) {
  Sizes sizes = products();
  std::erase_if(sizes, [](const std::vector<int64_t>& size) { return size[3] == 0; });
  in_types(b, {"rows", "in", "out", "rank"}, sizes);
}
void weight_sizes(benchmark::internal::Benchmark* b) {
  static const Sizes cpu = {{601, 512, 512, 0}}, gpu = {{4800, 512, 512, 0}, {76800, 512, 512, 0}},
                     tiny = {{70, 64, 72, 0}};
  in_types(b, {"rows", "in", "out", "rank"}, by_device(cpu, gpu, tiny));
}
BENCHMARK(forward)->Name("linear/forward")->Apply(product_sizes);
BENCHMARK(backward_input)->Name("linear/backward_input")->Apply(product_sizes);
BENCHMARK(low_rank)->Name("linear/low_rank_gradients")->Apply(low_rank_sizes);
BENCHMARK(weight_gradient)->Name("linear/weight_gradient")->Apply(weight_sizes);

}  // namespace
}  // namespace scgraft
