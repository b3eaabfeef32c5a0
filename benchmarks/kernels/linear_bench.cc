// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/kernels/bench.h"
#include "kernels/activation.h"
#include "kernels/add.h"
#include "kernels/linear.h"

namespace scgraft {
namespace {

// Frozen product with and without a rank-8 term: [rows, in] x [in, out] of scGPT.
void linear_forward(benchmark::State& state) {
  Context ctx;
  const int64_t rows = state.range(0), in = state.range(1), out = state.range(2),
                rank = state.range(3);
  const DType type = state.range(4) ? DType::bf16 : DType::f32;
  const Tensor x = random_tensor({rows, in}, 1), w = random_tensor({out, in}, 2),
               a = random_tensor({std::max<int64_t>(rank, 1), in}, 3),
               b = random_tensor({out, std::max<int64_t>(rank, 1)}, 4);
  Tensor y({rows, out}, DType::f32);
  PackedWeight packed;
  packed.pack(ctx, w.view(), PackedFor::forward, type);
  const LowRank term{a.view(), b.view(), 1, {}};
  for (auto _ : state)
    linear(ctx, x.view(), packed, {}, {&term, rank > 0 ? size_t{1} : size_t{0}}, nullptr, y.view());
  report(state, {.bytes = x.nbytes() + y.nbytes() + w.nbytes(),
                 .flops = 2 * rows * (in * out + rank * (in + out))});
}
BENCHMARK(linear_forward)
    ->ArgNames({"rows", "in", "out", "rank", "bf16"})
    ->Args({4808, 512, 512, 0, 0})
    ->Args({4808, 512, 512, 8, 0})
    ->Args({4808, 512, 1536, 0, 0})
    ->Args({4808, 512, 512, 0, 1})
    ->Args({601, 512, 512, 8, 0})
    ->UseRealTime();

// The feed-forward products of a pre-norm block, [512, 2048] with GELU and its pre-activation kept,
// [2048, 512] with a residual: as one operation, and as the plain ones one after another.
void linear_epilogue(benchmark::State& state) {
  Context ctx;
  const int64_t rows = state.range(0);
  const bool widens = state.range(1) != 0, fused = state.range(2) != 0;
  const int64_t in = widens ? 512 : 2048, out = widens ? 2048 : 512;
  const Tensor x = random_tensor({rows, in}, 1), w = random_tensor({out, in}, 2),
               bias = random_tensor({out}, 3), residual = random_tensor({rows, out}, 4);
  Tensor y({rows, out}, DType::f32), pre({rows, out}, DType::f32);
  PackedWeight packed;
  packed.pack(ctx, w.view(), PackedFor::forward, DType::f32);
  const LinearEpilogue epilogue = widens ? LinearEpilogue{.gelu = true, .pre = pre.view()}
                                         : LinearEpilogue{.residual = residual.view()};
  for (auto _ : state) {
    if (fused) {
      linear(ctx, x.view(), packed, bias.view(), {}, nullptr, y.view(), epilogue);
      continue;
    }
    linear(ctx, x.view(), packed, bias.view(), {}, nullptr, pre.view());
    if (widens)
      activation(ctx, Activation::gelu, pre.view(), y.view());
    else
      add(ctx, pre.view(), residual.view(), y.view());
  }
  // With the pre-activation written, or the residual read, beside y.
  report(state, {.bytes = x.nbytes() + 2 * y.nbytes() + w.nbytes(), .flops = 2 * rows * in * out});
}
BENCHMARK(linear_epilogue)
    ->ArgNames({"rows", "gelu", "fused"})
    ->ArgsProduct({{4808}, {0, 1}, {0, 1}})
    ->UseRealTime();

void low_rank_gradients(benchmark::State& state) {
  Context ctx;
  const int64_t rows = state.range(0), dim = 512, rank = 8;
  const Tensor x = random_tensor({rows, dim}, 1), dy = random_tensor({rows, dim}, 2),
               a = random_tensor({rank, dim}, 3), b = random_tensor({dim, rank}, 4);
  Tensor da({rank, dim}, DType::f32), db({dim, rank}, DType::f32);
  const std::vector<int32_t> offsets = {0, static_cast<int32_t>(rows)};
  const LowRank term{a.view(), b.view(), 1, {}};
  for (auto _ : state)
    low_rank_backward(ctx, x.view(), dy.view(), term, Packing::over(offsets), da.view(), db.view());
  report(state, {.bytes = x.nbytes() + dy.nbytes(), .flops = 8 * rows * dim * rank});
}
BENCHMARK(low_rank_gradients)->Arg(601)->Arg(4808)->UseRealTime();

void weight_gradient(benchmark::State& state) {
  Context ctx;
  const int64_t rows = state.range(0), dim = 512;
  const Tensor x = random_tensor({rows, dim}, 1), dy = random_tensor({rows, dim}, 2);
  Tensor dw({dim, dim}, DType::f32);
  const std::vector<int32_t> offsets = {0, static_cast<int32_t>(rows)};
  for (auto _ : state)
    linear_backward_weight(ctx, x.view(), dy.view(), Packing::over(offsets), dw.view(), {});
  report(state, {.bytes = x.nbytes() + dy.nbytes() + dw.nbytes(), .flops = 2 * rows * dim * dim});
}
BENCHMARK(weight_gradient)->Arg(601)->UseRealTime();

}  // namespace
}  // namespace scgraft
