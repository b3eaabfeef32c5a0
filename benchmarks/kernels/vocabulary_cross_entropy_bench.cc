// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/kernels/bench.h"
#include "kernels/vocabulary_cross_entropy.h"

namespace scgraft {
namespace {

// Masked genes of a batch against the genes of scGPT's and Geneformer's vocabularies.
struct Case {
  Context ctx;
  int64_t rows, words, dim;
  Tensor h, weight, bias, targets, loss, lse;

  explicit Case(const benchmark::State& state)
      : rows(state.range(0)),
        words(state.range(1)),
        dim(state.range(2)),
        h(random_tensor({rows, dim}, 1)),
        weight(random_tensor({words, dim}, 2)),
        bias(random_tensor({words}, 3)),
        targets({rows}, DType::i32),
        loss({rows}, DType::f32),
        lse({rows}, DType::f32) {
    for (int64_t r = 0; r < rows; ++r)
      targets.as<int32_t>()[r] = static_cast<int32_t>(1031 * r % words);
  }
  void forward() {
    vocabulary_cross_entropy(ctx, h.view(), weight.view(), bias.view(),
                             std::as_const(targets).view(), loss.view(), lse.view());
  }
  int64_t product() const { return 2 * rows * words * dim; }
  int64_t inputs() const { return h.nbytes() + weight.nbytes() + bias.nbytes() + targets.nbytes(); }
};

void forward(benchmark::State& state) {
  Case c(state);
  for (auto _ : state) c.forward();
  report(state, {c.inputs() + c.loss.nbytes() + c.lse.nbytes(), c.product()});
}

// With a frozen layer: the logits once more, and dh.
void backward(benchmark::State& state) {
  Case c(state);
  c.forward();
  Tensor dh(c.h.shape(), DType::f32);
  for (auto _ : state)
    vocabulary_cross_entropy_backward(c.ctx, c.h.view(), c.weight.view(), c.bias.view(),
                                      std::as_const(c.targets).view(), c.lse.view(), 1, nullptr,
                                      dh.view(), {}, {});
  report(state, {c.inputs() + c.lse.nbytes() + dh.nbytes(), 2 * c.product()});
}

// With a trainable one: dweight and dbias, which are read and written, too.
void backward_trainable(benchmark::State& state) {
  Case c(state);
  c.forward();
  const RowList rows(c.rows);
  const Packing packing = rows.packing();
  Tensor dh(c.h.shape(), DType::f32), dweight(c.weight.shape(), DType::f32),
      dbias(c.bias.shape(), DType::f32);
  for (auto _ : state)
    vocabulary_cross_entropy_backward(c.ctx, c.h.view(), c.weight.view(), c.bias.view(),
                                      std::as_const(c.targets).view(), c.lse.view(), 1, &packing,
                                      dh.view(), dweight.view(), dbias.view());
  report(state,
         {c.inputs() + c.lse.nbytes() + dh.nbytes() + 2 * (dweight.nbytes() + dbias.nbytes()),
          3 * c.product()});
}

void sizes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"rows", "words", "dim"})->UseRealTime()->Unit(benchmark::kMillisecond);
  b->Args({256, 25426, 256})->Args({128, 60697, 512});
}
BENCHMARK(forward)->Name("vocabulary_cross_entropy")->Apply(sizes);
BENCHMARK(backward)->Name("vocabulary_cross_entropy_backward")->Apply(sizes);
BENCHMARK(backward_trainable)->Name("vocabulary_cross_entropy_backward_trainable")->Apply(sizes);

}  // namespace
}  // namespace scgraft
