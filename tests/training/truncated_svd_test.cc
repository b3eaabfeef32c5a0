// SPDX-License-Identifier: Apache-2.0
#include "training/truncated_svd.h"

#include <gtest/gtest.h>

#include <Eigen/Dense>
#include <cmath>
#include <vector>

#include "runtime/random.h"
#include "tests/testing/op_test.h"
#include "training/nearest_neighbours.h"

namespace scgraft {
namespace {

SparseFeatures sparse(const Eigen::MatrixXd& dense) {
  SparseFeatures x;
  x.columns = dense.cols();
  for (int64_t r = 0; r < dense.rows(); ++r) {
    for (int64_t c = 0; c < dense.cols(); ++c) {
      if (dense(r, c) == 0) continue;
      x.column.push_back(static_cast<int32_t>(c));
      x.value.push_back(static_cast<float>(dense(r, c)));
    }
    x.offsets.push_back(static_cast<int64_t>(x.column.size()));
  }
  return x;
}

// About half zeros; values are f32 numbers, so that the sparse form holds the same matrix.
Eigen::MatrixXd random_matrix(int64_t rows, int64_t columns, uint32_t which) {
  RandomStream random(3, RandomUse::simulate, which);
  Eigen::MatrixXd m(rows, columns);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c)
      m(r, c) = std::max(0.0f, static_cast<float>(random.normal()));
  return m;
}

// A matrix of the given rank plus noise of relative size 1e-3.
Eigen::MatrixXd low_rank(int64_t rows, int64_t columns, int64_t rank) {
  Eigen::MatrixXd m = random_matrix(rows, rank, 10) * random_matrix(rank, columns, 11) +
                      1e-3 * random_matrix(rows, columns, 12);
  return m.cast<float>().cast<double>();
}

void expect_like_eigen(const Eigen::MatrixXd& m, int64_t components, double tolerance) {
  Context ctx;
  const TruncatedSvd svd = fit_truncated_svd(ctx, sparse(m), components, 0);
  const Eigen::JacobiSVD<Eigen::MatrixXd> want(m, Eigen::ComputeThinU | Eigen::ComputeThinV);
  ASSERT_EQ(static_cast<int64_t>(svd.singular_values.size()), components);
  const auto v = svd.components.as<float, 2>();
  for (int64_t j = 0; j < components; ++j) {
    const double s = want.singularValues()(j);
    EXPECT_NEAR(svd.singular_values[static_cast<size_t>(j)], s, tolerance * s) << j;
    double along = 0;
    double length = 0;
    float extreme = 0;
    for (int64_t c = 0; c < m.cols(); ++c) {
      along += v(c, j) * want.matrixV()(c, j);
      length += static_cast<double>(v(c, j)) * v(c, j);
      if (std::abs(v(c, j)) > std::abs(extreme)) extreme = v(c, j);
    }
    EXPECT_NEAR(length, 1, 1e-6) << j;
    EXPECT_NEAR(std::abs(along), 1, std::max(tolerance, 1e-6)) << j;
    EXPECT_GT(extreme, 0) << j;
  }
}

// [[3, 0], [0, 4]] stretches the second axis most.
TEST(TruncatedSvd, OfADiagonalMatrix) {
  Context ctx;
  Eigen::MatrixXd m(2, 2);
  m << 3, 0, 0, 4;
  const TruncatedSvd svd = fit_truncated_svd(ctx, sparse(m), 2, 0);
  EXPECT_NEAR(svd.singular_values[0], 4, 1e-12);
  EXPECT_NEAR(svd.singular_values[1], 3, 1e-12);
  const std::vector<double> v = values_of(svd.components.view());
  EXPECT_NEAR(v[0], 0, 1e-7);
  EXPECT_NEAR(v[1], 1, 1e-7);
  EXPECT_NEAR(v[2], 1, 1e-7);
  EXPECT_NEAR(v[3], 0, 1e-7);
  expect_close(svd.project(ctx, sparse(m)).view(), {0, 3, 4, 0}, 2);
}

TEST(TruncatedSvd, IsExactForSmallMatrices) {
  expect_like_eigen(random_matrix(13, 40, 0), 6, 1e-9);
  expect_like_eigen(random_matrix(40, 13, 1), 6, 1e-9);
}

TEST(TruncatedSvd, FindsTheLeadingComponentsOfALargeMatrix) {
  expect_like_eigen(low_rank(120, 90, 5), 5, 1e-7);
}

TEST(TruncatedSvd, GivesNoMoreComponentsThanTheMatrixHas) {
  Context ctx;
  const TruncatedSvd svd = fit_truncated_svd(ctx, sparse(random_matrix(3, 20, 2)), 50, 0);
  EXPECT_EQ(svd.components.shape(), (Shape{20, 3}));
}

// Rank 1: the second singular value is zero, and nothing becomes NaN.
TEST(TruncatedSvd, OfAMatrixOfLowRank) {
  Context ctx;
  Eigen::MatrixXd m(3, 3);
  m << 1, 2, 0, 2, 4, 0, 0, 0, 0;
  const TruncatedSvd svd = fit_truncated_svd(ctx, sparse(m), 2, 0);
  EXPECT_NEAR(svd.singular_values[0], 5, 1e-12);
  EXPECT_NEAR(svd.singular_values[1], 0, 1e-12);
  for (const double v : values_of(svd.components.view())) EXPECT_TRUE(std::isfinite(v));
  const std::vector<double> z = values_of(svd.project(ctx, sparse(m)).view());
  EXPECT_NEAR(z[0], std::sqrt(5.0), 1e-6);
  EXPECT_NEAR(z[1], 0, 1e-6);
  EXPECT_NEAR(z[2], 2 * std::sqrt(5.0), 1e-6);
}

// Large enough for several tasks (training/parallel_blocks.h).
TEST(TruncatedSvd, ThreadsChangeNoBitAndSeedsDo) {
  const SparseFeatures x = sparse(random_matrix(600, 500, 4));
  Context one(Device::cpu(), {.threads = 1});
  Context four(Device::cpu(), {.threads = 4});
  const TruncatedSvd a = fit_truncated_svd(one, x, 50, 5);
  const TruncatedSvd b = fit_truncated_svd(four, x, 50, 5);
  expect_same_bits(a.components.view(), b.components.view());
  expect_same_bits(a.project(one, x).view(), b.project(four, x).view());
  const TruncatedSvd other = fit_truncated_svd(one, x, 50, 6);
  EXPECT_NE(values_of(a.components.view()), values_of(other.components.view()));
}

TEST(TruncatedSvd, RefusesWhatHasNoComponents) {
  Context ctx;
  expect_error("components must be above 0, got 0",
               [&] { fit_truncated_svd(ctx, sparse(random_matrix(2, 2, 0)), 0, 0); });
  expect_error("needs cells and genes, got 0 cells",
               [&] { fit_truncated_svd(ctx, SparseFeatures(), 5, 0); });
}

// ---- nearest neighbours -------------------------------------------------------------------

Tensor rows_of(Shape shape, const std::vector<double>& values) {
  return tensor_of(shape, DType::f32, values);
}

// Directions at 0, 10, 90 and 100 degrees; lengths do not matter.
TEST(NearestNeighbours, VotesByAngle) {
  Context ctx;
  const Tensor known = rows_of({4, 2}, {5, 0, 0.985, 0.174, 0, 0.1, -0.174, 0.985});
  const NearestNeighbours knn(ctx, known.view(), {0, 0, 1, 1}, 2, 3);
  const ClassPrediction p = knn.predict(ctx, rows_of({2, 2}, {1, 0.1, -0.1, 9}).view());
  EXPECT_EQ(p.label, (std::vector<int32_t>{0, 1}));
  expect_close(p.probabilities.view(), {2.0 / 3, 1.0 / 3, 1.0 / 3, 2.0 / 3});
}

TEST(NearestNeighbours, TiesGoToTheEarlierRowAndTheLowerClass) {
  Context ctx;
  const Tensor same = rows_of({4, 1}, {1, 2, 3, 4});
  const Tensor query = rows_of({1, 1}, {7});
  EXPECT_EQ(
      NearestNeighbours(ctx, same.view(), {2, 1, 0, 0}, 3, 1).predict(ctx, query.view()).label,
      (std::vector<int32_t>{2}));
  EXPECT_EQ(
      NearestNeighbours(ctx, same.view(), {2, 1, 0, 0}, 3, 2).predict(ctx, query.view()).label,
      (std::vector<int32_t>{1}));
}

TEST(NearestNeighbours, FewerRowsThanNeighboursAllVote) {
  Context ctx;
  const NearestNeighbours knn(ctx, rows_of({3, 1}, {1, 1, -1}).view(), {1, 1, 0}, 2, 10);
  const ClassPrediction p = knn.predict(ctx, rows_of({1, 1}, {-1}).view());
  EXPECT_EQ(p.label, (std::vector<int32_t>{1}));
  expect_close(p.probabilities.view(), {1.0 / 3, 2.0 / 3});
}

// A cell without expression is at a right angle to all others: the earliest rows vote.
TEST(NearestNeighbours, RowOfZerosIsAtARightAngle) {
  Context ctx;
  const NearestNeighbours knn(ctx, rows_of({3, 2}, {0, 0, 1, 1, 0, 0}).view(), {0, 1, 2}, 3, 1);
  EXPECT_EQ(knn.predict(ctx, rows_of({2, 2}, {0, 0, -1, -1}).view()).label,
            (std::vector<int32_t>{0, 0}));
}

TEST(NearestNeighbours, PredictionsOfACellDoNotDependOnTheOthersOrOnThreads) {
  Context one(Device::cpu(), {.threads = 1});
  Context four(Device::cpu(), {.threads = 4});
  const int64_t n = 70;
  Tensor rows({n, 33}, DType::f32);
  RandomStream random(2, RandomUse::simulate);
  for (int64_t i = 0; i < rows.numel(); ++i)
    rows.as<float>()[i] = static_cast<float>(random.normal());
  std::vector<int32_t> labels;
  for (int i = 0; i < n; ++i) labels.push_back(i % 5);
  const NearestNeighbours knn(one, rows.view(), labels, 5, 4);
  const ClassPrediction all = knn.predict(one, rows.view());
  const ClassPrediction threads = knn.predict(four, rows.view());
  EXPECT_EQ(all.label, threads.label);
  expect_same_bits(all.probabilities.view(), threads.probabilities.view());
  for (int64_t i = 0; i < n; ++i) {
    const ClassPrediction alone = knn.predict(one, rows.view().rows(i, i + 1));
    EXPECT_EQ(alone.label[0], all.label[static_cast<size_t>(i)]);
  }
}

TEST(NearestNeighbours, RefusesWhatCannotBeCompared) {
  Context ctx;
  const Tensor known = rows_of({1, 2}, {1, 2});
  const NearestNeighbours knn(ctx, known.view(), {0}, 1, 1);
  expect_error("embeddings of width 2 were wanted, got shape [1, 1]", [&] {
    knn.predict(ctx, rows_of({1, 1}, {1}).view());
  });
  expect_error("the embedding of cell 1 is not finite", [&] {
    knn.predict(ctx, rows_of({2, 2}, {1, 1, std::nan(""), 1}).view());
  });
  expect_error("k must be above 0", [&] { NearestNeighbours(ctx, known.view(), {0}, 1, 0); });
  expect_error("label 1, classes are 0 to 0",
               [&] { NearestNeighbours(ctx, known.view(), {1}, 1, 1); });
  expect_error("at least one labelled cell", [&] {
    NearestNeighbours(ctx, rows_of({0, 2}, {}).view(), {}, 1, 1);
  });
}

}  // namespace
}  // namespace scgraft
