// SPDX-License-Identifier: Apache-2.0
#include "kernels/vocabulary_cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "kernels/require_tensor.h"
#include "runtime/gpu/emulator.h"
#include "tests/kernels/packed_cells.h"

namespace scgraft {
namespace {

// Everything one forward and backward pass reads and writes.
struct Pass {
  PackedCells cells;
  std::vector<int32_t> target;
  Tensor h, weight, bias, targets;
  Tensor loss, lse, dh, dweight, dbias;

  // Every fourth row is ignored.
  Pass(const std::vector<int32_t>& lengths, int64_t words, int64_t dim, DType type,
       DType weight_type)
      : cells(lengths, std::vector<int64_t>(lengths.size())),
        h(random_values({cells.rows(), dim}, type, 1)),
        weight(random_values({words, dim}, weight_type, 2, 1 / std::sqrt(dim + 0.0))),
        bias(random_values({words}, weight_type, 3)) {
    for (int64_t r = 0; r < cells.rows(); ++r)
      target.push_back(r % 4 == 3 ? -1 - static_cast<int32_t>(r)
                                  : static_cast<int32_t>(r * 1031 % words));
    targets = ints_of(target);
    clear();
  }
  Pass(const std::vector<int32_t>& lengths, int64_t words, int64_t dim, DType type)
      : Pass(lengths, words, dim, type, type) {}

  DType sums() const { return sum_type(h.dtype()); }
  static Tensor nans(Shape shape, DType dtype) {
    return tensor_of(shape, dtype,
                     std::vector<double>(static_cast<size_t>(shape.numel()), std::nan("")));
  }
  void clear() {
    loss = nans({cells.rows()}, sums());
    lse = nans({cells.rows()}, sums());
    dh = nans(h.shape(), h.dtype());
    dweight = Tensor(weight.shape(), sums(), test_device());
    dbias = Tensor(bias.shape(), sums(), test_device());
  }
  void forward(Context& ctx) {
    vocabulary_cross_entropy(ctx, h.view(), weight.view(), bias.view(), targets.view(), loss.view(),
                             lse.view());
  }
  void backward(Context& ctx, double scale = 1) {
    const Packing packing = cells.packing();
    vocabulary_cross_entropy_backward(ctx, h.view(), weight.view(), bias.view(), targets.view(),
                                      lse.view(), scale, &packing, dh.view(), dweight.view(),
                                      dbias.view());
  }
};

// The formulas in f64.
struct Formulas {
  std::vector<double> loss, lse, dh, dweight, dbias;

  Formulas(const Pass& pass, double scale) {
    const std::vector<double> h = values_of(pass.h.view()), w = values_of(pass.weight.view()),
                              b = values_of(pass.bias.view());
    const auto dim = static_cast<size_t>(pass.h.dim(1)), words = b.size();
    dh.assign(h.size(), 0);
    dweight.assign(w.size(), 0);
    dbias.assign(b.size(), 0);
    for (size_t r = 0; r < pass.target.size(); ++r) {
      std::vector<double> logits = b;
      for (size_t v = 0; v < words; ++v)
        for (size_t d = 0; d < dim; ++d) logits[v] += h[r * dim + d] * w[v * dim + d];
      const double largest = *std::max_element(logits.begin(), logits.end());
      double sum = 0;
      for (double x : logits) sum += std::exp(x - largest);
      lse.push_back(largest + std::log(sum));
      if (pass.target[r] < 0) {
        loss.push_back(0);
        continue;
      }
      const auto target = static_cast<size_t>(pass.target[r]);
      loss.push_back(lse.back() - logits[target]);
      for (size_t v = 0; v < words; ++v) {
        const double g = scale * (std::exp(logits[v] - lse.back()) - (v == target ? 1.0 : 0.0));
        dbias[v] += g;
        for (size_t d = 0; d < dim; ++d) {
          dh[r * dim + d] += g * w[v * dim + d];
          dweight[v * dim + d] += g * h[r * dim + d];
        }
      }
    }
  }
};

class VocabularyCrossEntropyTest : public OpTest {
 protected:
  bool on_cuda() { return ctx().device().is_cuda(); }
  // Calls test() for every storage type.
  void for_each_type(const std::function<void()>& test) {
    for (const DType type : storage_types()) {
      SCOPED_TRACE(type);
      store(type);
      test();
    }
    store(GetParam().dtype);
  }
  // Gradients have the roundings of g in them where h has 16 bits, beside those of their own type.
  void expect_gradients(const Pass& got, const Formulas& want, int64_t k) {
    const auto close = [&](const Tensor& t, const std::vector<double>& values) {
      const Tolerance limit = tolerance(got.h.dtype(), k);
      double largest = 0;
      for (double x : values) largest = std::max(largest, std::abs(x));
      const std::vector<double> have = values_of(t.view());
      ASSERT_EQ(have.size(), values.size());
      for (size_t i = 0; i < values.size(); ++i)
        ASSERT_NEAR(have[i], values[i],
                    limit.rtol * std::abs(values[i]) + limit.atol_of_largest * largest)
            << i;
    };
    close(got.dh, want.dh);
    close(got.dweight, want.dweight);
    close(got.dbias, want.dbias);
  }
};
INSTANTIATE_OP_TEST(VocabularyCrossEntropyTest);

// Logits (0, ln 3): softmax (1/4, 3/4).
TEST_P(VocabularyCrossEntropyTest, ByHand) {
  const Tensor h = tensor({3, 1}, {1, 1, 5}), weight = tensor({2, 1}, {2, 0});
  const Tensor bias = tensor({2}, {-2, std::log(3.0)});
  const Tensor targets = ints({0, 1, -7});
  Tensor loss = poisoned({3}), lse = poisoned({3});
  vocabulary_cross_entropy(ctx(), h.view(), weight.view(), bias.view(), targets.view(), loss.view(),
                           lse.view());
  expect_close(loss.view(), {std::log(4.0), std::log(4.0 / 3), 0}, 4);
  // g = 0.5 (1/4 - 1, 3/4) and 0.5 (1/4, 3/4 - 1).
  Tensor dh = poisoned({3, 1}), dweight = tensor({2, 1}, {10, 20}), dbias = zeros({2});
  const PackedCells cells({2, 1}, {0, 0});
  const Packing packing = cells.packing();
  vocabulary_cross_entropy_backward(ctx(), h.view(), weight.view(), bias.view(), targets.view(),
                                    lse.view(), 0.5, &packing, dh.view(), dweight.view(),
                                    dbias.view());
  expect_close(dh.view(), {-0.75, 0.25, 0}, 4);
  expect_close(dweight.view(), {9.75, 20.25}, 4);
  expect_close(dbias.view(), {-0.25, 0.25}, 4);
}

TEST_P(VocabularyCrossEntropyTest, AgreesWithTheFormulas) {
  for_each_type([&] {
    // Around one chunk, two of them, and a rest; widths with and without whole vectors.
    for (const auto& [words, dim] : {std::pair<int64_t, int64_t>{1, 8},
                                     {33, 33},
                                     {kVocabularyChunk, 8},
                                     {kVocabularyChunk + 1, 7},
                                     {2 * kVocabularyChunk + 24, 24}}) {
      SCOPED_TRACE(cat("vocabulary ", words, ", dim ", dim));
      Pass pass({2, 0, 1, 30}, words, dim, dtype());
      pass.forward(ctx());
      pass.backward(ctx(), 0.5);
      const Formulas want(pass, 0.5);
      expect_close(pass.loss.view(), want.loss, dim);
      expect_close(pass.lse.view(), want.lse, dim);
      expect_gradients(pass, want, words);
      EXPECT_EQ(ctx().scratch().used(), 0);
    }
  });
}

TEST_P(VocabularyCrossEntropyTest, RowsWithoutRowsAreNoWork) {
  Pass pass({0}, 5, 3, dtype());
  pass.forward(ctx());
  pass.backward(ctx());
  expect_close(pass.dbias.view(), std::vector<double>(5));
}

// A trainable weight is f32 beside activations of 16 bits.
TEST_P(VocabularyCrossEntropyTest, WeightsMayBeF32) {
  for_each_type([&] {
    for (const int64_t dim : {7, 24}) {
      Pass pass({5, 12}, kVocabularyChunk + 100, dim, dtype(), sum_type(dtype()));
      pass.forward(ctx());
      pass.backward(ctx());
      // The product rounds them.
      Pass rounded({5, 12}, kVocabularyChunk + 100, dim, dtype());
      rounded.bias = pass.bias.clone();
      rounded.forward(ctx());
      rounded.backward(ctx());
      expect_same_bits(rounded.loss.view(), pass.loss.view());
      expect_same_bits(rounded.dh.view(), pass.dh.view());
      expect_same_bits(rounded.dweight.view(), pass.dweight.view());
    }
  });
}

TEST_P(VocabularyCrossEntropyTest, GradientsMatchFiniteDifferences) {
  if (dtype() != DType::f64) GTEST_SKIP() << "finite differences are taken in f64 only";
  Pass pass({2, 3}, kVocabularyChunk + 3, 2, DType::f64);
  pass.forward(ctx());
  pass.backward(ctx(), 0.25);
  const auto loss = [&] {
    pass.forward(ctx());
    double sum = 0;
    for (double x : values_of(pass.loss.view())) sum += x;
    return 0.25 * sum;
  };
  expect_gradient(pass.h, loss, pass.dh.view());
  expect_gradient(pass.bias, loss, pass.dbias.view());
  // Of the weight those words that are targets, and some others.
  const std::vector<double> gradient = values_of(pass.dweight.view());
  for (const size_t i :
       {size_t{0}, size_t{1}, size_t{2 * 1031}, size_t{2 * kVocabularyChunk + 1}}) {
    double* value = pass.weight.as<double>() + i;
    const double at = *value;
    *value = at + kDifferenceStep;
    const double above = loss();
    *value = at - kDifferenceStep;
    const double below = loss();
    *value = at;
    EXPECT_NEAR((above - below) / (2 * kDifferenceStep), gradient[i], kDifferenceTolerance);
  }
}

// Logits far apart, between chunks too, and words that cannot be.
TEST_P(VocabularyCrossEntropyTest, LargeLogitsDoNotOverflow) {
  const double inf = std::numeric_limits<double>::infinity();
  const int64_t words = kVocabularyChunk + 2;
  std::vector<double> bias(static_cast<size_t>(words), -inf);
  bias[3] = -2e4;
  bias[static_cast<size_t>(words) - 1] = 1e4;
  const Tensor h = tensor({2, 1}, {0, 0});
  const Tensor weight = zeros({words, 1});
  Tensor loss = poisoned({2}), lse = poisoned({2}), dh = poisoned({2, 1}), dbias = zeros({words});
  const auto run = [&] {
    const Tensor b = tensor({words}, bias);
    const Tensor targets = ints({3, static_cast<int32_t>(words) - 1});
    vocabulary_cross_entropy(ctx(), h.view(), weight.view(), b.view(), targets.view(), loss.view(),
                             lse.view());
    const PackedCells cells({2}, {0});
    const Packing packing = cells.packing();
    vocabulary_cross_entropy_backward(ctx(), h.view(), weight.view(), b.view(), targets.view(),
                                      lse.view(), 1, &packing, dh.view(), {}, dbias.view());
  };
  run();
  expect_close(loss.view(), {3e4, 0});
  expect_close(lse.view(), {1e4, 1e4});
  EXPECT_EQ(values_of(dbias.view())[3], -1);
  EXPECT_EQ(values_of(dbias.view())[static_cast<size_t>(words) - 1], 1);
  std::swap(bias[3], bias[static_cast<size_t>(words) - 1]);
  run();
  expect_close(loss.view(), {0, 3e4});
}

TEST_P(VocabularyCrossEntropyTest, NanStaysInItsRow) {
  Pass pass({3}, kVocabularyChunk + 5, 8, dtype());
  pass.target = {4, 5, 2};
  pass.targets = ints_of(pass.target);
  std::vector<double> h = values_of(pass.h.view());
  h[9] = std::nan("");
  pass.h = tensor({3, 8}, h);
  pass.forward(ctx());
  pass.backward(ctx());
  const std::vector<double> loss = values_of(pass.loss.view()), dh = values_of(pass.dh.view());
  for (size_t r = 0; r < 3; ++r) {
    EXPECT_EQ(std::isnan(loss[r]), r == 1);
    for (size_t d = 0; d < 8; ++d) EXPECT_EQ(std::isnan(dh[r * 8 + d]), r == 1);
  }
}

TEST_P(VocabularyCrossEntropyTest, WhatIsNotWantedIsLeftOut) {
  for_each_type([&] {
    Pass want({3, 30}, kVocabularyChunk + 8, 16, dtype());
    want.forward(ctx());
    want.backward(ctx());
    const Packing packing = want.cells.packing();
    for (int wanted = 0; wanted < 8; ++wanted) {
      Pass got({3, 30}, kVocabularyChunk + 8, 16, dtype());
      const auto only = [&](int bit, Tensor& t) {
        return wanted >> bit & 1 ? t.view() : TensorView{};
      };
      vocabulary_cross_entropy_backward(ctx(), want.h.view(), want.weight.view(), want.bias.view(),
                                        want.targets.view(), want.lse.view(), 1,
                                        wanted > 1 ? &packing : nullptr, only(0, got.dh),
                                        only(1, got.dweight), only(2, got.dbias));
      if (wanted & 1) expect_same_bits(got.dh.view(), want.dh.view());
      if (wanted & 2) expect_same_bits(got.dweight.view(), want.dweight.view());
      if (wanted & 4) expect_same_bits(got.dbias.view(), want.dbias.view());
    }
    // Without a bias: one of zeros.
    Pass plain({3, 30}, kVocabularyChunk + 8, 16, dtype());
    plain.bias = zeros({kVocabularyChunk + 8});
    plain.forward(ctx());
    Tensor loss = Pass::nans({33}, want.sums()), lse = Pass::nans({33}, want.sums());
    vocabulary_cross_entropy(ctx(), plain.h.view(), plain.weight.view(), {}, plain.targets.view(),
                             loss.view(), lse.view());
    expect_same_bits(loss.view(), plain.loss.view());
  });
}

TEST_P(VocabularyCrossEntropyTest, AFactorOnTheDeviceScalesGradients) {
  Pass want({3, 6}, 100, 16, dtype()), got({3, 6}, 100, 16, dtype());
  want.forward(ctx());
  want.backward(ctx(), 1.5);
  const Tensor factor = tensor_of({1}, DType::f64, {3});
  const Packing packing = got.cells.packing();
  vocabulary_cross_entropy_backward(ctx(), want.h.view(), want.weight.view(), want.bias.view(),
                                    want.targets.view(), want.lse.view(), 0.5, &packing,
                                    got.dh.view(), got.dweight.view(), got.dbias.view(),
                                    factor.view());
  expect_same_bits(got.dh.view(), want.dh.view());
  expect_same_bits(got.dweight.view(), want.dweight.view());
}

// One call over three cells, or one call per cell: the same bits.
TEST_P(VocabularyCrossEntropyTest, CuttingTheBatchBetweenCellsChangesNothing) {
  for_each_type([&] {
    const std::vector<int32_t> lengths = {70, 1, 20};
    Pass whole(lengths, kVocabularyChunk + 40, 16, dtype());
    whole.forward(ctx());
    whole.backward(ctx());
    Pass parts(lengths, kVocabularyChunk + 40, 16, dtype());
    for (size_t cell = 0; cell < lengths.size(); ++cell) {
      const PackedCells one({lengths[cell]}, {0});
      const Packing packing = one.packing();
      const int32_t begin = parts.cells.offsets[cell], end = parts.cells.offsets[cell + 1];
      const auto cut = [&](Tensor& t) { return t.view().rows(begin, end); };
      vocabulary_cross_entropy(ctx(), cut(parts.h), parts.weight.view(), parts.bias.view(),
                               cut(parts.targets), cut(parts.loss), cut(parts.lse));
      vocabulary_cross_entropy_backward(ctx(), cut(parts.h), parts.weight.view(), parts.bias.view(),
                                        cut(parts.targets), cut(parts.lse), 1, &packing,
                                        cut(parts.dh), parts.dweight.view(), parts.dbias.view());
    }
    expect_same_bits(parts.loss.view(), whole.loss.view());
    expect_same_bits(parts.lse.view(), whole.lse.view());
    expect_same_bits(parts.dh.view(), whole.dh.view());
    expect_same_bits(parts.dweight.view(), whole.dweight.view());
    expect_same_bits(parts.dbias.view(), whole.dbias.view());
  });
}

TEST_P(VocabularyCrossEntropyTest, ThreadsAndSchedulingChangeNothing) {
  for_each_type([&] {
    Pass want({40, 3}, kVocabularyChunk + 8, 16, dtype());
    want.forward(ctx());
    want.backward(ctx());
    const auto check = [&](Context& other) {
      Pass got({40, 3}, kVocabularyChunk + 8, 16, dtype());
      got.forward(other);
      got.backward(other);
      expect_same_bits(got.loss.view(), want.loss.view());
      expect_same_bits(got.dh.view(), want.dh.view());
      expect_same_bits(got.dweight.view(), want.dweight.view());
      expect_same_bits(got.dbias.view(), want.dbias.view());
    };
    for (const int threads : {1, 5}) {
      Context other(test_device(), {.threads = threads, .reference = ctx().reference()});
      check(other);
    }
    if constexpr (kCudaEmulated) {
      for (const gpu::Order order : {gpu::Order::reverse, gpu::Order::random}) {
        gpu::emulator_options().order = order;
        check(ctx());
        gpu::emulator_options().order = gpu::Order::forward;
      }
    }
  });
}

TEST_P(VocabularyCrossEntropyTest, ErrorsSayWhatWasWantedAndWhatCame) {
  Pass p({4}, 6, 8, dtype());
  const Tensor narrow = zeros({6, 7}), short_bias = zeros({5});
  const auto forward = [&](ConstTensorView h, ConstTensorView weight, ConstTensorView bias,
                           ConstTensorView targets) {
    vocabulary_cross_entropy(ctx(), h, weight, bias, targets, p.loss.view(), p.lse.view());
  };
  expect_error("vocabulary_cross_entropy: weight must be [vocabulary, 8], got [6, 7]",
               [&] { forward(p.h.view(), narrow.view(), p.bias.view(), p.targets.view()); });
  expect_error("bias must be [6], got [5]",
               [&] { forward(p.h.view(), p.weight.view(), short_bias.view(), p.targets.view()); });
  expect_error("targets must be [4], got [3]", [&] {
    forward(p.h.view(), p.weight.view(), p.bias.view(), p.targets.view().rows(0, 3));
  });
  const Tensor integers({4, 8}, DType::i32, test_device());
  expect_error(cat("computes on ", on_cuda() ? "f32, bf16 or f16" : "f32 or f64", ", h is i32"),
               [&] { forward(integers.view(), p.weight.view(), {}, p.targets.view()); });
  expect_error(cat("h is ", dtype(), ", weight or bias is i32"),
               [&] { forward(p.h.view(), integers.view(), {}, p.targets.view()); });
  p.targets = ints({0, 6, 1, 2});
  if (on_cuda()) {
    p.forward(ctx());
    p.backward(ctx());
    EXPECT_TRUE(std::isnan(values_of(p.loss.view())[1]));
    EXPECT_TRUE(std::isnan(values_of(p.dh.view())[8]));
    EXPECT_FALSE(std::isnan(values_of(p.dh.view())[7]));
  } else {
    expect_error("target 6 of row 1 must be below 6, the size of the vocabulary",
                 [&] { p.forward(ctx()); });
  }
  p.targets = ints({0, 1, 2, 3});
  const auto backward = [&](const Packing* packing, TensorView dh, TensorView dweight) {
    vocabulary_cross_entropy_backward(ctx(), p.h.view(), p.weight.view(), p.bias.view(),
                                      p.targets.view(), p.lse.view(), 1, packing, dh, dweight, {});
  };
  expect_error("dweight and dbias need the packing of the rows, got none",
               [&] { backward(nullptr, {}, p.dweight.view()); });
  expect_error("dh must not be h", [&] { backward(nullptr, p.h.view(), {}); });
  expect_error("dh must be [4, 8], got [6, 8]", [&] { backward(nullptr, p.weight.view(), {}); });
  const PackedCells cells({3}, {0});
  const Packing packing = cells.packing();
  expect_error("h has 4 tokens, the packing has 3",
               [&] { backward(&packing, {}, p.dweight.view()); });
}

}  // namespace
}  // namespace scgraft
