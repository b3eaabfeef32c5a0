// SPDX-License-Identifier: Apache-2.0
#include "kernels/softmax.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/kernels/packed_cells.h"

namespace scgraft {
namespace {

class SoftmaxTest : public OpTest {
 public:
  // dy and the sum of y dy may cancel: the error is that of these, not of what is left.
  void expect_gradient_close(const Tensor& y, const Tensor& dy, const Tensor& got,
                             const Tensor& want) {
    const std::vector<double> out = values_of(y.view()), gradient = values_of(dy.view()),
                              have = values_of(got.view()), exact = values_of(want.view());
    double largest = 0;
    for (const double g : gradient) largest = std::max(largest, std::abs(g));
    const double relative = tolerance(dtype(), 1).rtol;
    const double sum = tolerance(dtype() == DType::f64 ? DType::f64 : DType::f32, y.dim(1)).rtol;
    for (size_t i = 0; i < have.size(); ++i)
      ASSERT_NEAR(have[i], exact[i],
                  relative * std::abs(exact[i]) + sum * 2 * largest * out[i] +
                      (dtype() == DType::f16 ? 3.0e-8 : 0))
          << "element " << i;
  }
};
INSTANTIATE_OP_TEST(SoftmaxTest);

TEST_P(SoftmaxTest, HandComputed) {
  const double ln3 = std::log(3.0);
  const Tensor x = tensor({3, 2}, {0, ln3, -ln3, 0, 5, 5});
  Tensor y = poisoned({3, 2});
  softmax(ctx(), x.view(), y.view());
  expect_close(y.view(), {0.25, 0.75, 0.25, 0.75, 0.5, 0.5});
}

TEST_P(SoftmaxTest, BackwardHandComputed) {
  // y = (1/4, 3/4), dy = (4, 0): the sum of y dy is 1, so dx = (3/4, -3/4).
  const Tensor y = tensor({1, 2}, {0.25, 0.75});
  const Tensor dy = tensor({1, 2}, {4, 0});
  Tensor dx = poisoned({1, 2});
  softmax_backward(ctx(), y.view(), dy.view(), dx.view());
  expect_close(dx.view(), {0.75, -0.75});
}

TEST_P(SoftmaxTest, LargeValuesDoNotOverflow) {
  const Tensor x = tensor({2, 3}, {1000, 1000, -1000, -1000, -1000, -2000});
  Tensor y = poisoned({2, 3});
  softmax(ctx(), x.view(), y.view());
  expect_close(y.view(), {0.5, 0.5, 0, 0.5, 0.5, 0});
}

TEST_P(SoftmaxTest, AgreesWithTheF64DefinitionAtAwkwardSizes) {
  Context definition = reference_context();
  for (DType type : storage_types()) {
    SCOPED_TRACE(type);
    store(type);
    for (int64_t rows : {0, 1, 3, 67})
      for (int64_t dim : {0, 1, 2, 3, 8, 31, 33, 100, 104, 257, 520}) {
        SCOPED_TRACE(cat(rows, " x ", dim));
        const Tensor x = random({rows, dim}, 3), dy = random({rows, dim});
        Tensor y = poisoned({rows, dim}), dx = poisoned({rows, dim});
        softmax(ctx(), x.view(), y.view());
        softmax_backward(ctx(), y.view(), dy.view(), dx.view());
        Tensor want({rows, dim}, DType::f64);
        softmax(definition, in_f64(x).view(), want.view());
        expect_close(y.view(), values_of(want.view()), dim);
        softmax_backward(definition, in_f64(y).view(), in_f64(dy).view(), want.view());
        expect_gradient_close(y, dy, dx, want);
      }
  }
}

TEST_P(SoftmaxTest, RowsSumToOne) {
  const Tensor x = random({9, 101}, 4);
  Tensor y = poisoned({9, 101});
  softmax(ctx(), x.view(), y.view());
  const std::vector<double> out = values_of(y.view());
  for (size_t r = 0; r < 9; ++r) {
    double sum = 0;
    for (size_t j = 0; j < 101; ++j) sum += out[r * 101 + j];
    EXPECT_NEAR(sum, 1, 1e-5);
  }
}

TEST_P(SoftmaxTest, ANanInARowStaysInThatRow) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const Tensor x = tensor({2, 3}, {1, nan, 2, 3, 3, 3});
  Tensor y = zeros({2, 3});
  softmax(ctx(), x.view(), y.view());
  const std::vector<double> out = values_of(y.view());
  for (size_t j = 0; j < 3; ++j) {
    EXPECT_TRUE(std::isnan(out[j]));
    EXPECT_NEAR(out[3 + j], 1.0 / 3, 1e-6);
  }
}

TEST_P(SoftmaxTest, GradientMatchesFiniteDifferences) {
  if (dtype() != DType::f64) GTEST_SKIP() << "finite differences are taken in f64";
  for (int64_t dim : {1, 3, 33}) {
    Tensor x = random({4, dim});
    const Tensor dy = random({4, dim});
    Tensor y = poisoned({4, dim}), dx = poisoned({4, dim});
    softmax(ctx(), x.view(), y.view());
    softmax_backward(ctx(), y.view(), dy.view(), dx.view());
    expect_gradient(
        x,
        [&] {
          Tensor out = poisoned({4, dim});
          softmax(ctx(), x.view(), out.view());
          return dot(out.view(), dy.view());
        },
        dx.view());
  }
}

TEST_P(SoftmaxTest, SameBitsInPlaceForAnyThreadsAndAnyBatch) {
  for (DType type : storage_types()) {
    SCOPED_TRACE(type);
    store(type);
    const Tensor x = random({131, 33}), dy = random({131, 33});
    Tensor y = poisoned({131, 33}), dx = poisoned({131, 33});
    softmax(ctx(), x.view(), y.view());
    softmax_backward(ctx(), y.view(), dy.view(), dx.view());
    for (int threads : {1, 3}) {
      Context other(test_device(), {.threads = threads, .reference = GetParam().reference});
      Tensor in_place = x.clone();
      softmax(other, in_place.view(), in_place.view());
      expect_same_bits(in_place.view(), y.view());
      Tensor dx_in_place = dy.clone();
      softmax_backward(other, y.view(), dx_in_place.view(), dx_in_place.view());
      expect_same_bits(dx_in_place.view(), dx.view());
    }
    Tensor last = poisoned({1, 33});
    softmax(ctx(), x.view().rows(130, 131), last.view());
    expect_same_bits(last.view(), y.view().rows(130, 131));
  }
}

TEST_P(SoftmaxTest, ErrorsNameWhatWasWanted) {
  const Tensor x = zeros({2, 3}), flat = zeros({6});
  Tensor y = zeros({2, 4}), good = zeros({2, 3});
  expect_error("softmax: y must be [2, 3], got [2, 4]",
               [&] { softmax(ctx(), x.view(), y.view()); });
  expect_error("softmax: x must be [rows, dim], got [6]",
               [&] { softmax(ctx(), flat.view(), good.view()); });
  expect_error("softmax_backward: dy must be [2, 3], got [6]",
               [&] { softmax_backward(ctx(), x.view(), flat.view(), good.view()); });
  Tensor bad({2, 3}, DType::i32, test_device());
  expect_error("this operation computes on f32", [&] { softmax(ctx(), bad.view(), bad.view()); });
}

}  // namespace
}  // namespace scgraft
