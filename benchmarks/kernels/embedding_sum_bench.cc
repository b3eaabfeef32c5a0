// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <numeric>

#include "benchmarks/kernels/bench.h"
#include "kernels/embedding_sum.h"

namespace scgraft {
namespace {

constexpr int64_t kGenes = 3000;
constexpr int64_t kBins = 52;

std::vector<int32_t> random_index(int64_t tokens, int64_t rows, uint32_t which) {
  RandomStream stream(1, RandomUse::initialise, which);
  std::vector<int32_t> index(static_cast<size_t>(tokens));
  for (int32_t& i : index) i = static_cast<int32_t>(stream.below(static_cast<uint32_t>(rows)));
  return index;
}

// The tables stay in the caches: beside the tokens they count once.
void forward(benchmark::State& state) {
  Context ctx(bench_device());
  const int64_t tokens = state.range(1);
  const DType type = bench_type(state);
  const Dropout dropout = bench_dropout(state);
  const BenchCells cells(ctx, tokens, kBenchSeq);
  const Tensor a = random_tensor({kGenes, kBenchDim}, 1, type),
               b = random_tensor({kBins, kBenchDim}, 2, type);
  const Tensor ia = tensor_of(random_index(tokens, kGenes, 3));
  const Tensor ib = tensor_of(random_index(tokens, kBins, 4));
  Tensor y = new_tensor({tokens, kBenchDim}, type);
  measure(state, ctx, {.bytes = a.nbytes() + y.nbytes(), .flops = y.numel(), .streams = true}, [&] {
    embedding_sum(ctx, a.view(), ia.view(), b.view(), ib.view(), dropout, cells.packing(),
                  y.view());
  });
}

void backward(benchmark::State& state, int64_t rows) {
  Context ctx(bench_device());
  const int64_t tokens = state.range(1);
  const Dropout dropout = bench_dropout(state);
  const BenchCells cells(ctx, tokens, kBenchSeq);
  const std::vector<int32_t> index = random_index(tokens, rows, 4);
  std::vector<int32_t> order(index.size()), offsets(static_cast<size_t>(rows) + 1);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t s, int32_t t) {
    return index[static_cast<size_t>(s)] < index[static_cast<size_t>(t)];
  });
  for (int32_t row : index) ++offsets[static_cast<size_t>(row) + 1];
  std::partial_sum(offsets.begin(), offsets.end(), offsets.begin());
  const Tensor starts = tensor_of(offsets), users = tensor_of(order);
  const Tensor dy = random_tensor({tokens, kBenchDim}, 0, bench_type(state));
  Tensor dtable = new_tensor({rows, kBenchDim}, dy.dtype());
  measure(state, ctx,
          {.bytes = dy.nbytes() + dtable.nbytes(), .flops = dy.numel(), .streams = true}, [&] {
            embedding_sum_backward(ctx, dy.view(), {starts.view(), users.view()}, dropout,
                                   cells.packing(), dtable.view());
          });
}

BENCHMARK(forward)->Name("embedding_sum/forward")->Apply(sizes_by_tokens_and_dropout);
BENCHMARK_CAPTURE(backward, genes, kGenes)
    ->Name("embedding_sum/backward_genes")
    ->Apply(sizes_by_tokens_and_dropout);
BENCHMARK_CAPTURE(backward, bins, kBins)
    ->Name("embedding_sum/backward_bins")
    ->Apply(sizes_by_tokens_and_dropout);

}  // namespace
}  // namespace scgraft
