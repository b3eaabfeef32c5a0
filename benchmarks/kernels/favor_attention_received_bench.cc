// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/kernels/bench.h"
#include "kernels/favor_attention_received.h"

namespace scgraft {
namespace {

// Cells of one batch of scBERT: ten heads of 64 and 266 features.
struct Shapes {
  const char* name;
  std::vector<int32_t> lengths;
};

const std::vector<Shapes>& shapes() {
  static const std::vector<Shapes> cpu = {{"scbert_1x2048", {2048}}, {"scbert_1x16907", {16907}}};
  static const std::vector<Shapes> gpu = {{"scbert_1x16907", {16907}},
                                          {"scbert_4x16907", {16907, 16907, 16907, 16907}}};
  static const std::vector<Shapes> tiny = {{"1x70", {70}}};
  return by_device(cpu, gpu, tiny);
}

void received(benchmark::State& state) {
  const Shapes& s = shapes()[static_cast<size_t>(state.range(1))];
  state.SetLabel(s.name);
  constexpr int64_t kHeads = 10, kHeadDim = 64, kFeatures = 266;
  const DType type = bench_type(state);
  Context ctx(bench_device());
  const BenchCells cells(ctx, s.lengths);
  const Shape shape{cells.packing().tokens(), kHeads * kHeadDim};
  Tensor q = random_tensor(shape, 1, type), k = random_tensor(shape, 2, type);
  Tensor projection = random_tensor({kFeatures, kHeadDim}, 3), out = new_tensor(shape, type);
  Tensor to = new_tensor({kHeads, shape[0]}, DType::f32);
  const FavorContext context = FavorContext::take(ctx.activations(), cells.packing().cells(),
                                                  kHeads, kFeatures, kHeadDim, type);
  favor_attention(ctx, q.view(), k.view(), k.view(), cells.packing(), kHeads, projection.view(), {},
                  out.view(), context);
  const auto run = [&] {
    favor_attention_received(ctx, q.view(), k.view(), cells.packing(), kHeads, projection.view(),
                             {}, context, to.view());
  };
  run();
  // u of the queries and of the keys, once each.
  measure(
      state, ctx,
      {.bytes = 2 * q.nbytes() + to.nbytes(), .flops = 2 * 2 * q.numel() * kFeatures, .type = type},
      run);
}

void sizes(benchmark::internal::Benchmark* b) {
  std::vector<std::vector<int64_t>> lists;
  for (size_t i = 0; i < shapes().size(); ++i) lists.push_back({static_cast<int64_t>(i)});
  in_types(b, {"case"}, lists);
  b->Unit(benchmark::kMillisecond);
}
BENCHMARK(received)->Name("favor_attention_received/forward")->Apply(sizes);

}  // namespace
}  // namespace scgraft
