// SPDX-License-Identifier: Apache-2.0
#include "kernels/ecs.h"

#include <cmath>
#include <limits>

#include "kernels/require_tensor.h"
#include "tests/kernels/packed_cells.h"

namespace scgraft {
namespace {

class EcsTest : public OpTest {
 protected:
  double loss_of(const Tensor& x, double threshold) {
    Tensor loss = poisoned({1}, sum_type(dtype()));
    ecs(ctx(), x.view(), threshold, 1, loss.view(), {});
    return values_of(loss.view())[0];
  }
};
INSTANTIATE_OP_TEST(EcsTest);

TEST_P(EcsTest, HandComputed) {
  // Cosines: 24/25 between the first two, -4/5 and -3/5 with the third, which count as 0.
  // Two entries 1 - 0.66^2 and seven 1 - 0.3^2, over nine.
  const Tensor x = tensor({3, 2}, {3, 4, 4, 3, 0, -2});
  Tensor loss = poisoned({1});
  ecs(ctx(), x.view(), 0.3, 1, loss.view(), {});
  expect_close(loss.view(), {(2 * 0.5644 + 7 * 0.91) / 9}, 9);
}

TEST_P(EcsTest, OneCellAndNoCells) {
  Tensor loss = poisoned({1}), dx = zeros({1, 2});
  ecs(ctx(), tensor({1, 2}, {3, 4}).view(), 0.6, 1, loss.view(), dx.view());
  expect_close(loss.view(), {1 - 0.36});
  expect_close(dx.view(), {0, 0});
  ecs(ctx(), zeros({0, 2}).view(), 0.6, 1, loss.view(), {});
  expect_close(loss.view(), {0});
}

TEST_P(EcsTest, GradientHandComputed) {
  // Cells (1, 0) and (3, 4), threshold 0: loss = 1 - 2 cos^2 / 4 and cos = 0.6, so dloss/dcos =
  // -0.6; dcos/dx0 = (0, 0.8) and dcos/dx1 = ((1, 0) - 0.6 (0.6, 0.8)) / 5 = (0.128, -0.096).
  const Tensor x = tensor({2, 2}, {1, 0, 3, 4});
  Tensor loss = poisoned({1});
  Tensor dx = tensor({2, 2}, {10, 20, 30, 40});
  ecs(ctx(), x.view(), 0, 2, loss.view(), dx.view());
  expect_close(loss.view(), {0.82}, 4);
  expect_close(dx.view(), {10, 20 - 1.2 * 0.8, 30 - 1.2 * 0.128, 40 + 1.2 * 0.096}, 4);
}

TEST_P(EcsTest, AgreesWithTheFormulaAtAwkwardSizes) {
  for (DType type : storage_types()) {
    SCOPED_TRACE(type);
    store(type);
    for (int64_t cells : {1, 2, 3, 31, 33})
      for (int64_t dim : {1, 2, 3, 31, 33, 257}) {
        const Tensor x = random({cells, dim}, 2);
        const std::vector<double> v = values_of(x.view());
        const size_t n = static_cast<size_t>(dim);
        const auto product = [&](size_t i, size_t j) {
          double sum = 0;
          for (size_t d = 0; d < n; ++d) sum += v[i * n + d] * v[j * n + d];
          return sum;
        };
        double want = 0;
        for (size_t i = 0; i < static_cast<size_t>(cells); ++i)
          for (size_t j = 0; j < static_cast<size_t>(cells); ++j) {
            const double cosine = product(i, j) / std::sqrt(product(i, i) * product(j, j));
            const double excess = (i == j ? 0 : std::max(cosine, 0.0)) - 0.8;
            want += (1 - excess * excess) / static_cast<double>(cells * cells);
          }
        EXPECT_NEAR(loss_of(x, 0.8), want, tolerance(dtype(), cells * cells + dim).rtol);
      }
  }
}

TEST_P(EcsTest, GradientAgreesWithTheF64Definition) {
  Context definition = reference_context();
  for (DType type : storage_types()) {
    store(type);
    for (int64_t cells : {2, 3, 31, 33})
      for (int64_t dim : {8, 33, 512}) {
        SCOPED_TRACE(cat(type, ", cells ", cells, ", dim ", dim));
        const Tensor x = random({cells, dim}, 2);
        Tensor loss = poisoned({1}, sum_type(type)), dx = random({cells, dim});
        Tensor loss64({1}, DType::f64), want = in_f64(dx);
        ecs(ctx(), x.view(), 0.3, 50, loss.view(), dx.view());
        ecs(definition, in_f64(x).view(), 0.3, 50, loss64.view(), want.view());
        expect_close(dx.view(), values_of(want.view()), dim + cells);
      }
  }
}

TEST_P(EcsTest, TheLengthOfACellDoesNotMatter) {
  const Tensor x = random({5, 33});
  std::vector<double> longer = values_of(x.view());
  for (size_t d = 0; d < 33; ++d) longer[d] *= 4;
  EXPECT_EQ(loss_of(tensor({5, 33}, longer), 0.3),
            loss_of(x, 0.3));  // 4 is a power of two: nothing is rounded differently
}

TEST_P(EcsTest, ACellOfZerosHasNoGradient) {
  const Tensor x = tensor({2, 2}, {0, 0, 1, 1});
  Tensor loss = poisoned({1}), dx = zeros({2, 2});
  ecs(ctx(), x.view(), 0.5, 1, loss.view(), dx.view());
  expect_close(loss.view(), {0.75});
  expect_close(dx.view(), {0, 0, 0, 0});
}

TEST_P(EcsTest, ANanGivesANanLoss) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_TRUE(std::isnan(loss_of(tensor({2, 2}, {nan, 0, 1, 1}), 0.5)));
}

TEST_P(EcsTest, GradientMatchesFiniteDifferences) {
  if (dtype() != DType::f64) GTEST_SKIP() << "finite differences are taken in f64";
  for (double threshold : {0.0, 0.3}) {
    Tensor x = random({6, 5});
    Tensor loss = poisoned({1}), dx = zeros({6, 5});
    ecs(ctx(), x.view(), threshold, 10, loss.view(), dx.view());
    expect_gradient(
        x, [&] { return 10 * loss_of(x, threshold); }, dx.view());
  }
}

TEST_P(EcsTest, SameBitsForAnyThreadCount) {
  const Tensor x = random({33, 31});
  Tensor loss = poisoned({1}), dx = zeros({33, 31});
  ecs(ctx(), x.view(), 0.8, 10, loss.view(), dx.view());
  for (int threads : {1, 3, 8}) {
    Context other(test_device(), {.threads = threads, .reference = GetParam().reference});
    Tensor loss2 = poisoned({1}), dx2 = zeros({33, 31});
    ecs(other, x.view(), 0.8, 10, loss2.view(), dx2.view());
    expect_same_bits(loss2.view(), loss.view());
    expect_same_bits(dx2.view(), dx.view());
    EXPECT_EQ(other.scratch().used(), 0);
  }
}

TEST_P(EcsTest, ErrorsNameWhatWasWanted) {
  const Tensor x = zeros({2, 3});
  Tensor loss = zeros({1}), dx = zeros({2, 2}), two = zeros({2});
  expect_error("ecs: loss must be [1], got [2]",
               [&] { ecs(ctx(), x.view(), 0.5, 1, two.view(), {}); });
  expect_error("ecs: dx must be [2, 3], got [2, 2]",
               [&] { ecs(ctx(), x.view(), 0.5, 1, loss.view(), dx.view()); });
  expect_error("ecs: x must be [cells, dim], got [2]",
               [&] { ecs(ctx(), two.view(), 0.5, 1, loss.view(), {}); });
}

}  // namespace
}  // namespace scgraft
