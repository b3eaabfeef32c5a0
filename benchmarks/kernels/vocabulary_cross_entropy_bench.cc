// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/kernels/bench.h"
#include "kernels/vocabulary_cross_entropy.h"

namespace scgraft {
namespace {

// Masked genes of a batch against all genes of a vocabulary.
struct Case {
  Context ctx{bench_device()};
  int64_t rows, words, dim;
  DType type;
  BenchCells cells;
  Tensor h, weight, bias, targets, loss, lse;

  explicit Case(const benchmark::State& state)
      : rows(state.range(1)),
        words(state.range(2)),
        dim(state.range(3)),
        type(bench_type(state)),
        cells(ctx, rows, rows),
        h(random_tensor({rows, dim}, 1, type)),
        weight(random_tensor({words, dim}, 2, type)),
        bias(random_tensor({words}, 3)),
        targets(tensor_of(wanted(rows, words))),
        loss(new_tensor({rows})),
        lse(new_tensor({rows})) {}
  static std::vector<int32_t> wanted(int64_t rows, int64_t words) {
    std::vector<int32_t> genes;
    for (int64_t r = 0; r < rows; ++r) genes.push_back(static_cast<int32_t>(1031 * r % words));
    return genes;
  }
  void forward() {
    vocabulary_cross_entropy(ctx, h.view(), weight.view(), bias.view(), targets.view(), loss.view(),
                             lse.view());
  }
  // `products` passes over all logits, `more` bytes beside the inputs.
  Cost cost(int64_t products, int64_t more) const {
    return {.bytes = h.nbytes() + weight.nbytes() + bias.nbytes() + targets.nbytes() +
                     lse.nbytes() + more,
            .flops = products * 2 * rows * words * dim,
            .type = type};
  }
};

void forward(benchmark::State& state) {
  Case c(state);
  measure(state, c.ctx, c.cost(1, c.loss.nbytes()), [&] { c.forward(); });
}

// With a frozen layer: the logits once more, and dh.
void backward(benchmark::State& state) {
  Case c(state);
  c.forward();
  Tensor dh = new_tensor(c.h.shape(), c.type);
  measure(state, c.ctx, c.cost(2, dh.nbytes()), [&] {
    vocabulary_cross_entropy_backward(c.ctx, c.h.view(), c.weight.view(), c.bias.view(),
                                      std::as_const(c.targets).view(), std::as_const(c.lse).view(),
                                      1, nullptr, dh.view(), {}, {});
  });
}

// With a trainable one: dweight and dbias, which are read and written, too.
void backward_trainable(benchmark::State& state) {
  Case c(state);
  c.forward();
  Tensor dh = new_tensor(c.h.shape(), c.type), dweight = new_tensor(c.weight.shape()),
         dbias = new_tensor(c.bias.shape());
  measure(state, c.ctx, c.cost(3, dh.nbytes() + 2 * (dweight.nbytes() + dbias.nbytes())), [&] {
    vocabulary_cross_entropy_backward(c.ctx, c.h.view(), c.weight.view(), c.bias.view(),
                                      std::as_const(c.targets).view(), std::as_const(c.lse).view(),
                                      1, &c.cells.packing(), dh.view(), dweight.view(),
                                      dbias.view());
  });
}

// Geneformer's and scGPT's vocabularies, LLaMA's.
void sizes(benchmark::internal::Benchmark* b) {
  static const std::vector<std::vector<int64_t>> cpu = {{256, 25426, 256}, {128, 60697, 512}},
                                                 gpu = {{4096, 25426, 512},
                                                        {4096, 60697, 512},
                                                        {2048, 32000, 4096}},
                                                 tiny = {{5, 130, 16}};
  in_types(b, {"rows", "words", "dim"}, by_device(cpu, gpu, tiny));
  b->Unit(benchmark::kMillisecond);
}
BENCHMARK(forward)->Name("vocabulary_cross_entropy/forward")->Apply(sizes);
BENCHMARK(backward)->Name("vocabulary_cross_entropy/backward")->Apply(sizes);
BENCHMARK(backward_trainable)->Name("vocabulary_cross_entropy/backward_trainable")->Apply(sizes);

}  // namespace
}  // namespace scgraft
