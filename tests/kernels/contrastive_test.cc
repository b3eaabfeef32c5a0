// SPDX-License-Identifier: Apache-2.0
#include "kernels/contrastive.h"

#include <cmath>

#include "kernels/require_tensor.h"
#include "tests/kernels/packed_cells.h"

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

TEST_P(ContrastiveTest, AgreesWithTheFormulaAtAwkwardSizes) {
  for (DType type : storage_types()) {
    SCOPED_TRACE(type);
    store(type);
    for (int64_t cells : {1, 2, 3, 31, 33})
      for (int64_t dim : {1, 2, 3, 31, 33, 257}) {
        SCOPED_TRACE(cat("cells ", cells, ", dim ", dim));
        const Tensor x1 = random({cells, dim}), x2 = random({cells, dim}, 3);
        const std::vector<double> a = values_of(x1.view()), b = values_of(x2.view());
        const size_t n = static_cast<size_t>(cells), width = static_cast<size_t>(dim);
        const auto product = [&](const double* u, const double* v) {
          double sum = 0;
          for (size_t d = 0; d < width; ++d) sum += u[d] * v[d];
          return sum;
        };
        const auto cosine = [&](size_t i, size_t j) {
          const double *u = a.data() + i * width, *v = b.data() + j * width;
          return product(u, v) / std::sqrt(product(u, u) * product(v, v));
        };
        double want = 0;
        for (size_t i = 0; i < n; ++i) {
          double sum = 0;
          for (size_t j = 0; j < n; ++j) sum += std::exp(cosine(i, j) / 0.5);
          want += (std::log(sum) - cosine(i, i) / 0.5) / static_cast<double>(n);
        }
        Tensor loss = poisoned({1}, sum_type(type));
        contrastive(ctx(), x1.view(), x2.view(), 0.5, 1, loss.view(), {}, {});
        // A difference of terms of up to 2 / temperature, which cancel for a single cell.
        EXPECT_NEAR(values_of(loss.view())[0], want, 4 * tolerance(dtype(), dim + cells).rtol);
      }
  }
}

TEST_P(ContrastiveTest, TheLengthOfACellDoesNotMatter) {
  const Tensor x1 = random({5, 33}), x2 = random({5, 33});
  std::vector<double> longer = values_of(x1.view());
  for (size_t i = 0; i < longer.size(); ++i) longer[i] *= static_cast<double>(1 << (i / 33));
  Tensor loss = poisoned({1}), other = poisoned({1});
  contrastive(ctx(), x1.view(), x2.view(), 0.5, 1, loss.view(), {}, {});
  contrastive(ctx(), tensor({5, 33}, longer).view(), x2.view(), 0.5, 1, other.view(), {}, {});
  expect_same_bits(other.view(), loss.view());  // powers of two divide out exactly
}

// With a constant length the loss is linear in a tiny row: nothing is projected out.
TEST_P(ContrastiveTest, BelowTheFloorTheLengthIsAConstant) {
  if (dtype() != DType::f64) GTEST_SKIP() << "differences of 1e-12 need f64";
  const Tensor other = tensor({2, 2}, {1, 0, 0, 1});
  const auto loss_at = [&](double a, double b) {
    Tensor loss = poisoned({1});
    contrastive(ctx(), tensor({2, 2}, {a, b, 0, 1}).view(), other.view(), 0.5, 1, loss.view(), {},
                {});
    return values_of(loss.view())[0];
  };
  const double a = 6e-9, b = 3e-9, step = 1e-13;
  Tensor loss = poisoned({1}), dx = zeros({2, 2});
  contrastive(ctx(), tensor({2, 2}, {a, b, 0, 1}).view(), other.view(), 0.5, 1, loss.view(),
              dx.view(), {});
  const std::vector<double> got = values_of(dx.view());
  const double by_a = (loss_at(a + step, b) - loss_at(a - step, b)) / (2 * step);
  const double by_b = (loss_at(a, b + step) - loss_at(a, b - step)) / (2 * step);
  EXPECT_NEAR(got[0] / by_a, 1, 1e-6);
  EXPECT_NEAR(got[1] / by_b, 1, 1e-6);
}

TEST_P(ContrastiveTest, GradientsAreAddedAndMayBeOneTensor) {
  for (DType type : storage_types()) {
    SCOPED_TRACE(type);
    store(type);
    const Tensor x = random({7, 9});
    Tensor loss = poisoned({1}, sum_type(type)), d1 = zeros({7, 9}), d2 = zeros({7, 9}),
           both = zeros({7, 9});
    contrastive(ctx(), x.view(), x.view(), 0.5, 2, loss.view(), d1.view(), d2.view());
    contrastive(ctx(), x.view(), x.view(), 0.5, 2, loss.view(), both.view(), both.view());
    std::vector<double> want = values_of(d1.view());
    const std::vector<double> second = values_of(d2.view());
    for (size_t i = 0; i < want.size(); ++i) want[i] += second[i];
    expect_close(both.view(), want, 9);
  }
}

TEST_P(ContrastiveTest, GradientsAgreeWithTheF64Definition) {
  Context definition = reference_context();
  for (DType type : storage_types()) {
    store(type);
    for (int64_t cells : {2, 3, 31, 33})
      for (int64_t dim : {8, 33, 512}) {
        SCOPED_TRACE(cat(type, ", cells ", cells, ", dim ", dim));
        const Tensor x1 = random({cells, dim}), x2 = random({cells, dim}, 3);
        Tensor loss = poisoned({1}, sum_type(type));
        Tensor d1 = random({cells, dim}), d2 = random({cells, dim});
        Tensor loss64({1}, DType::f64), want1 = in_f64(d1), want2 = in_f64(d2);
        contrastive(ctx(), x1.view(), x2.view(), 0.5, 2, loss.view(), d1.view(), d2.view());
        contrastive(definition, in_f64(x1).view(), in_f64(x2).view(), 0.5, 2, loss64.view(),
                    want1.view(), want2.view());
        expect_close(d1.view(), values_of(want1.view()), dim + cells);
        expect_close(d2.view(), values_of(want2.view()), dim + cells);
      }
  }
}

TEST_P(ContrastiveTest, SameBitsForAnyThreadCount) {
  const Tensor x1 = random({33, 70}), x2 = random({33, 70});
  Tensor loss = poisoned({1}), d1 = zeros({33, 70}), d2 = zeros({33, 70});
  contrastive(ctx(), x1.view(), x2.view(), 0.5, 1, loss.view(), d1.view(), d2.view());
  for (int threads : {1, 3, 8}) {
    Context other(test_device(), {.threads = threads, .reference = GetParam().reference});
    Tensor loss2 = poisoned({1}), e1 = zeros({33, 70}), e2 = zeros({33, 70});
    contrastive(other, x1.view(), x2.view(), 0.5, 1, loss2.view(), e1.view(), e2.view());
    expect_same_bits(loss2.view(), loss.view());
    expect_same_bits(e1.view(), d1.view());
    expect_same_bits(e2.view(), d2.view());
    EXPECT_EQ(other.scratch().used(), 0);
  }
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
  expect_error("contrastive: x2 must be [2, 3], got [3, 3]",
               [&] { contrastive(ctx(), a.view(), b.view(), 0.5, 1, loss.view(), {}, {}); });
  expect_error("contrastive: dx1 must be [2, 3], got [3, 3]",
               [&] { contrastive(ctx(), a.view(), a.view(), 0.5, 1, loss.view(), b.view(), {}); });
  expect_error("the temperature must be above 0, got 0",
               [&] { contrastive(ctx(), a.view(), a.view(), 0, 1, loss.view(), {}, {}); });
}

}  // namespace
}  // namespace scgraft
