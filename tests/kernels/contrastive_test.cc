// SPDX-License-Identifier: Apache-2.0
#include "kernels/contrastive.h"

#include <cmath>

#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

class ContrastiveTest : public OpTest {};
INSTANTIATE_OP_TEST(ContrastiveTest);

TEST_P(ContrastiveTest, OrthogonalRowsGiveTheHandComputedLoss) {
  const Tensor x = tensor({2, 2}, {3, 0, 0, 5});
  Tensor loss = poisoned({1});
  contrastive(ctx(), x.view(), x.view(), 0.5, 1.0, loss.view(), {}, {});
  expect_close(loss.view(), {std::log(std::exp(2.0) + 1.0) - 2.0}, 4);
}

TEST_P(ContrastiveTest, NoCellsGiveNoLoss) {
  Tensor x = zeros({0, 4}), loss = poisoned({1});
  contrastive(ctx(), x.view(), x.view(), 0.5, 1.0, loss.view(), {}, {});
  expect_close(loss.view(), {0});
}

TEST_P(ContrastiveTest, GradientMatchesFiniteDifferences) {
  if (dtype() != DType::f64) GTEST_SKIP() << "finite differences are taken in f64";
  Tensor x1 = random({3, 5}), x2 = random({3, 5});
  Tensor d1 = zeros({3, 5}), d2 = zeros({3, 5}), loss = poisoned({1});
  contrastive(ctx(), x1.view(), x2.view(), 0.5, 2.0, loss.view(), d1.view(), d2.view());
  auto value = [&] {
    contrastive(ctx(), x1.view(), x2.view(), 0.5, 2.0, loss.view(), {}, {});
    return 2.0 * loss.as<double>()[0];
  };
  expect_gradient(x1, value, d1.view());
  expect_gradient(x2, value, d2.view());
}

TEST_P(ContrastiveTest, ErrorNamesTheShapes) {
  Tensor a = zeros({2, 3}), b = zeros({3, 3}), loss = zeros({1});
  expect_error("got [2, 3] and [3, 3]",
               [&] { contrastive(ctx(), a.view(), b.view(), 0.5, 1, loss.view(), {}, {}); });
}

}  // namespace
}  // namespace scgraft
