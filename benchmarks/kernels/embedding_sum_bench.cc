// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <numeric>

#include "benchmarks/kernels/copy_rate.h"
#include "kernels/embedding_sum.h"

namespace scgraft {
namespace {

constexpr int64_t kGenes = 3000;
constexpr int64_t kBins = 52;

std::vector<int32_t> random_index(int64_t tokens, int64_t rows, uint32_t which) {
  RandomStream stream(1, RandomUse::initialise, which);
  std::vector<int32_t> index(static_cast<size_t>(tokens));
  for (int32_t& i : index) i = static_cast<int32_t>(stream.below(static_cast<uint64_t>(rows)));
  return index;
}

// The tables stay in the caches: only the tokens count as traffic.
void bench_forward(benchmark::State& state) {
  Context ctx;
  const int64_t tokens = state.range(0);
  const BenchCells cells(tokens, kBenchSeq);
  const Packing packing = cells.packing();
  const Tensor a = random_tensor({kGenes, kBenchDim}, 1), b = random_tensor({kBins, kBenchDim}, 2);
  const std::vector<int32_t> ia = random_index(tokens, kGenes, 3);
  const std::vector<int32_t> ib = random_index(tokens, kBins, 4);
  Tensor y({tokens, kBenchDim}, DType::f32);
  for (auto _ : state)
    embedding_sum(ctx, a.view(), view_of(ia.data(), {tokens}), b.view(),
                  view_of(ib.data(), {tokens}), bench_dropout(state), packing, y.view());
  report_against_copy(state, ctx, {.bytes = a.nbytes() + y.nbytes(), .flops = y.numel()});
}

void backward(benchmark::State& state, int64_t rows) {
  Context ctx;
  const int64_t tokens = state.range(0);
  const BenchCells cells(tokens, kBenchSeq);
  const Packing packing = cells.packing();
  const std::vector<int32_t> index = random_index(tokens, rows, 4);
  std::vector<int32_t> order(index.size()), offsets(static_cast<size_t>(rows) + 1);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t s, int32_t t) {
    return index[static_cast<size_t>(s)] < index[static_cast<size_t>(t)];
  });
  for (int32_t row : index) ++offsets[static_cast<size_t>(row) + 1];
  std::partial_sum(offsets.begin(), offsets.end(), offsets.begin());
  const RowUses uses{view_of(std::as_const(offsets).data(), {rows + 1}),
                     view_of(std::as_const(order).data(), {tokens})};
  const Tensor dy = random_tensor({tokens, kBenchDim});
  Tensor dtable({rows, kBenchDim}, DType::f32);
  for (auto _ : state)
    embedding_sum_backward(ctx, dy.view(), uses, bench_dropout(state), packing, dtable.view());
  report_against_copy(state, ctx, {.bytes = dy.nbytes() + dtable.nbytes(), .flops = dy.numel()});
}
void bench_backward_genes(benchmark::State& state) { backward(state, kGenes); }
void bench_backward_bins(benchmark::State& state) { backward(state, kBins); }

BENCHMARK(bench_forward)->Name("embedding_sum")->Apply(token_counts);
BENCHMARK(bench_backward_genes)->Name("embedding_sum_backward_genes")->Apply(token_counts);
BENCHMARK(bench_backward_bins)->Name("embedding_sum_backward_bins")->Apply(token_counts);

}  // namespace
}  // namespace scgraft
