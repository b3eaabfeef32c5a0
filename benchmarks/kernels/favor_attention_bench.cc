// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/kernels/bench.h"
#include "kernels/favor_attention.h"

namespace scgraft {
namespace {

// A network's attention over the cells of one batch.
struct Shapes {
  const char* name;
  std::vector<int32_t> lengths;
  int64_t heads;
  int64_t head_dim = 64;
  int64_t features = 266;
  FavorOptions options = {};
};

constexpr FavorOptions kRelu{.kernel = FavorKernel::relu};

const std::vector<Shapes>& shapes() {
  static const std::vector<Shapes> cpu = {
      {"scbert_1x2048", {2048}, 10},
      {"scbert_1x16907", {16907}, 10},
      {"scbert_relu_1x2048", {2048}, 10, 64, 266, kRelu},
  };
  static const std::vector<Shapes> gpu = {
      {"scbert_1x16907", {16907}, 10},
      {"scbert_relu_1x16907", {16907}, 10, 64, 266, kRelu},
      {"scbert_4x16907", {16907, 16907, 16907, 16907}, 10},
      {"scfoundation_1x19266", {19266}, 8},
  };
  static const std::vector<Shapes> tiny = {{"1x70", {70}, 1, 64, 70},
                                           {"relu_1x70", {70}, 1, 64, 70, kRelu}};
  return by_device(cpu, gpu, tiny);
}

struct Case {
  Case(const Shapes& s, DType type)
      : heads(s.heads),
        options(s.options),
        cells(ctx, s.lengths),
        q(random_tensor({cells.packing().tokens(), s.heads * s.head_dim}, 1, type)),
        k(random_tensor(q.shape(), 2, type)),
        v(random_tensor(q.shape(), 3, type)),
        dout(random_tensor(q.shape(), 4, type)),
        projection(random_tensor({s.features, s.head_dim}, 5)),
        out(new_tensor(q.shape(), type)),
        dq(new_tensor(q.shape(), type)),
        dk(new_tensor(q.shape(), type)),
        dv(new_tensor(q.shape(), type)),
        context(FavorContext::take(ctx.activations(), cells.packing().cells(), s.heads, s.features,
                                   s.head_dim, type)) {}

  void forward() {
    favor_attention(ctx, q.view(), k.view(), v.view(), cells.packing(), heads, projection.view(),
                    options, out.view(), context);
  }
  void backward() {
    favor_attention_backward(ctx, q.view(), k.view(), v.view(), out.view(), dout.view(),
                             cells.packing(), heads, projection.view(), options, context, dq.view(),
                             dk.view(), dv.view());
  }
  // Products of one [tokens, head_dim] with [head_dim, features] in every head: four forward (u of
  // keys and queries, sums, out), eight backward (u twice; dpsi and dx of both, dsums, dv).
  Cost cost(int64_t products, int64_t tensors) const {
    return {.bytes = tensors * q.nbytes(),
            .flops = products * 2 * q.numel() * projection.dim(0),
            .type = q.dtype()};
  }

  Context ctx{bench_device()};
  int64_t heads;
  FavorOptions options;
  BenchCells cells;
  Tensor q, k, v, dout, projection, out, dq, dk, dv;
  FavorContext context;
};

void forward(benchmark::State& state) {
  const Shapes& s = shapes()[static_cast<size_t>(state.range(1))];
  state.SetLabel(s.name);
  Case c(s, bench_type(state));
  c.forward();
  measure(state, c.ctx, c.cost(4, 4), [&] { c.forward(); });
}

void backward(benchmark::State& state) {
  const Shapes& s = shapes()[static_cast<size_t>(state.range(1))];
  state.SetLabel(s.name);
  Case c(s, bench_type(state));
  c.forward();
  c.backward();
  measure(state, c.ctx, c.cost(8, 8), [&] { c.backward(); });
}

void sizes(benchmark::internal::Benchmark* b) {
  std::vector<std::vector<int64_t>> lists;
  for (size_t i = 0; i < shapes().size(); ++i) lists.push_back({static_cast<int64_t>(i)});
  in_types(b, {"case"}, lists);
  b->Unit(benchmark::kMillisecond);
}
BENCHMARK(forward)->Name("favor_attention/forward")->Apply(sizes);
BENCHMARK(backward)->Name("favor_attention/backward")->Apply(sizes);

}  // namespace
}  // namespace scgraft
