// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "benchmarks/kernels/bench.h"
#include "kernels/activation.h"
#include "kernels/add.h"
#include "kernels/linear.h"

namespace scgraft {
namespace {

// Arguments: type, rows, in, out, rank of one low-rank term (0: frozen product alone).
struct Case {
  Context ctx;
  int64_t rows, in, out, rank;
  DType type;
  BenchCells cells;
  Tensor x, w, a, b, y, da, db, dw;
  LowRank term;

  explicit Case(const benchmark::State& state, LinearBackend backend = LinearBackend::own)
      : ctx(bench_device(), {.linear = backend}),
        rows(state.range(1)),
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

void forward_by(benchmark::State& state, LinearBackend backend) {
  Case c(state, backend);
  const PackedWeight weight = c.packed(state, PackedFor::forward);
  measure(state, c.ctx, c.cost(state), [&] {
    linear(c.ctx, std::as_const(c.x).view(), weight, {}, c.terms(), nullptr, c.y.view());
  });
}

void backward_input_by(benchmark::State& state, LinearBackend backend) {
  Case c(state, backend);
  const PackedWeight weight = c.packed(state, PackedFor::backward_input);
  measure(state, c.ctx, c.cost(state), [&] {
    linear_backward_input(c.ctx, std::as_const(c.y).view(), weight, c.terms(), nullptr, false,
                          c.x.view());
  });
}

void forward(benchmark::State& state) { forward_by(state, LinearBackend::own); }
void backward_input(benchmark::State& state) { backward_input_by(state, LinearBackend::own); }

// A 16-bit product with a low-rank term as two kernels, or as one that keeps a panel of rows. Both
// declare the cost of the operation; two kernels move x once more and u = x A^T.
void forward_on(benchmark::State& state, cuda::LowRankPath path) {
  if (bench_on() == BenchOn::cpu) return state.SkipWithError("panels are for CUDA devices");
  if constexpr (kBuiltWithCuda) {
    try {
      Case c(state);
      const PackedWeight weight = c.packed(state, PackedFor::forward);
      measure(state, c.ctx, c.cost(state), [&] {
        cuda::linear(c.ctx, std::as_const(c.x).view(), weight, {}, c.terms(), nullptr, c.y.view(),
                     {}, path);
      });
    } catch (const DeviceError& error) {  // 99 KiB of shared memory do not hold 128 rows of 512
      state.SkipWithError(error.what());
    }
  }
}
void forward_split(benchmark::State& state) { forward_on(state, cuda::LowRankPath::split); }
void forward_panel64(benchmark::State& state) { forward_on(state, cuda::LowRankPath::panel64); }
void forward_panel128(benchmark::State& state) { forward_on(state, cuda::LowRankPath::panel128); }

// The peer: the library's product, and a kernel for the low-rank term after it.
template <class Measure>
void by_library(benchmark::State& state, const Measure& measure_by) {
  try {
    measure_by(state, LinearBackend::cublaslt);
  } catch (const DeviceError& error) {
    state.SkipWithError(error.what());
  }
}
void forward_cublaslt(benchmark::State& state) { by_library(state, forward_by); }
void backward_input_cublaslt(benchmark::State& state) { by_library(state, backward_input_by); }

// The feed-forward products of a pre-norm block, [512, 2048] with GELU and its pre-activation kept,
// [2048, 512] with a residual: as one operation, or as plain ones one after another.
void epilogue(benchmark::State& state) {
  Context ctx(bench_device());
  const DType product = bench_type(state);
  const DType type = ctx.device().is_cpu() ? DType::f32 : product;
  const int64_t rows = state.range(1);
  const bool widens = state.range(2) != 0, fused = state.range(3) != 0;
  const int64_t in = widens ? 512 : 2048, out = widens ? 2048 : 512;
  const Tensor x = random_tensor({rows, in}, 1, type), w = random_tensor({out, in}, 2),
               bias = random_tensor({out}, 3), residual = random_tensor({rows, out}, 4, type);
  Tensor y = new_tensor({rows, out}, type), pre = new_tensor({rows, out}, type);
  PackedWeight packed;
  packed.pack(ctx, w.view(), PackedFor::forward, product);
  const LinearEpilogue both = widens ? LinearEpilogue{.gelu = true, .pre = pre.view()}
                                     : LinearEpilogue{.residual = residual.view()};
  // With the pre-activation written, or the residual read, beside y.
  const Cost cost{.bytes = x.nbytes() + 2 * y.nbytes() + w.numel() * size_of(product),
                  .flops = 2 * rows * in * out,
                  .type = product};
  measure(state, ctx, cost, [&] {
    if (fused) return linear(ctx, x.view(), packed, bias.view(), {}, nullptr, y.view(), both);
    linear(ctx, x.view(), packed, bias.view(), {}, nullptr, pre.view());
    if (widens)
      activation(ctx, Activation::gelu, pre.view(), y.view());
    else
      add(ctx, pre.view(), residual.view(), y.view());
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
void panel_sizes(benchmark::internal::Benchmark* b) {
  static const Sizes none, gpu = {{76800, 512, 512, 8}, {76800, 512, 1536, 8}},
                           tiny = {{70, 64, 72, 8}};
  b->ArgNames({"bf16", "rows", "in", "out", "rank"})
      ->UseManualTime()
      ->Unit(benchmark::kMicrosecond);
  for (std::vector<int64_t> size : by_device(none, gpu, tiny)) {
    size.insert(size.begin(), 1);
    b->Args(size);
  }
}
void library_sizes(benchmark::internal::Benchmark* b) {
  static const Sizes none;
  in_types(b, {"rows", "in", "out", "rank"}, by_device(none, products(), products()));
}
void epilogue_sizes(benchmark::internal::Benchmark* b) {
  Sizes sizes;
  for (const int64_t gelu : {0, 1})
    for (const int64_t fused : {0, 1}) sizes.push_back({token_counts().front(), gelu, fused});
  in_types(b, {"rows", "gelu", "fused"}, sizes);
}
BENCHMARK(forward)->Name("linear/forward")->Apply(product_sizes);
BENCHMARK(forward_split)->Name("linear/forward_split")->Apply(panel_sizes);
BENCHMARK(forward_panel64)->Name("linear/forward_panel64")->Apply(panel_sizes);
BENCHMARK(forward_panel128)->Name("linear/forward_panel128")->Apply(panel_sizes);
BENCHMARK(forward_cublaslt)->Name("linear/forward_cublaslt")->Apply(library_sizes);
BENCHMARK(backward_input_cublaslt)->Name("linear/backward_input_cublaslt")->Apply(library_sizes);
BENCHMARK(epilogue)->Name("linear/epilogue")->Apply(epilogue_sizes);
BENCHMARK(backward_input)->Name("linear/backward_input")->Apply(product_sizes);
BENCHMARK(low_rank)->Name("linear/low_rank_gradients")->Apply(low_rank_sizes);
BENCHMARK(weight_gradient)->Name("linear/weight_gradient")->Apply(weight_sizes);

}  // namespace
}  // namespace scgraft
