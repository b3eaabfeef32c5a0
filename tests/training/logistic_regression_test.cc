// SPDX-License-Identifier: Apache-2.0
#include "training/logistic_regression.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "runtime/random.h"
#include "tests/testing/op_test.h"
#include "training/lbfgs.h"

namespace scgraft {
namespace {

// Sparse rows from dense ones.
SparseFeatures features(const std::vector<std::vector<float>>& rows) {
  SparseFeatures x;
  x.columns = static_cast<int64_t>(rows.at(0).size());
  for (const auto& row : rows) {
    for (size_t c = 0; c < row.size(); ++c) {
      if (row[c] == 0) continue;
      x.column.push_back(static_cast<int32_t>(c));
      x.value.push_back(row[c]);
    }
    x.offsets.push_back(static_cast<int64_t>(x.column.size()));
  }
  return x;
}

// Rows with about half zeros.
SparseFeatures random_features(int64_t rows, int64_t columns, uint32_t which) {
  RandomStream random(7, RandomUse::simulate, which);
  std::vector<std::vector<float>> dense(static_cast<size_t>(rows));
  for (auto& row : dense)
    for (int64_t c = 0; c < columns; ++c) {
      const double v = random.normal();
      row.push_back(v > 0 ? static_cast<float>(v) : 0.0f);
    }
  return features(dense);
}

TEST(LogisticLoss, AtZeroIsTheEntropyOfAGuess) {
  Context ctx;
  const SparseFeatures x = features({{1, 0}, {0, 2}, {3, 1}});
  LogisticLoss loss(ctx, x, std::vector<int32_t>{0, 1, 2}, 3, 0.5);
  std::vector<double> p(9, 0.0);
  std::vector<double> g(9);
  ASSERT_EQ(loss.size(), 9);
  EXPECT_NEAR(loss(p, g), std::log(3.0), 1e-15);
  // Every class has one of three cells: the intercepts stay.
  for (size_t k = 6; k < 9; ++k) EXPECT_NEAR(g[k], 0.0, 1e-15);
}

// One feature 0, 0, 2, 2 has mean 1 and deviation 1: scaled it is -1, -1, 1, 1.
TEST(LogisticLoss, ScalesFeaturesAndPenalisesWeightsOnly) {
  Context ctx;
  const SparseFeatures x = features({{0}, {0}, {2}, {2}});
  LogisticLoss loss(ctx, x, std::vector<int32_t>{0, 0, 1, 1}, 2, 0.25);
  const std::vector<double> p = {-1, 1, 0.5, 0.5};  // an equal intercept changes nothing
  std::vector<double> g(4);
  const double nll = std::log(1 + std::exp(-2.0));
  EXPECT_NEAR(loss(p, g), nll + (1 + 1) / (2 * 0.25) / 4, 1e-14);
  // d nll / d w1 = -(1 - sigmoid(2)), penalty w1 / (C n).
  EXPECT_NEAR(g[1], -(1 - 1 / (1 + std::exp(-2.0))) + 1 / (0.25 * 4), 1e-14);
  EXPECT_NEAR(g[0], -g[1], 1e-14);
  EXPECT_NEAR(g[2], 0, 1e-14);
  EXPECT_NEAR(g[3], 0, 1e-14);
}

TEST(LogisticLoss, GradientMatchesFiniteDifferences) {
  Context ctx;
  const SparseFeatures x = random_features(23, 5, 0);
  std::vector<int32_t> labels;
  for (int i = 0; i < 23; ++i) labels.push_back(i % 4);
  LogisticLoss loss(ctx, x, labels, 4, 0.05);
  RandomStream random(1, RandomUse::simulate, 9);
  Tensor p({loss.size()}, DType::f64);
  for (int64_t i = 0; i < loss.size(); ++i) p.as<double>()[i] = random.normal();
  Tensor gradient({loss.size()}, DType::f64);
  std::vector<double> ignored(static_cast<size_t>(loss.size()));
  const std::span<const double> at(p.as<double>(), ignored.size());
  loss(at, {gradient.as<double>(), ignored.size()});
  expect_gradient(
      p, [&] { return loss(at, ignored); }, gradient.view());
}

TEST(LogisticLoss, UnscaledParametersGiveTheSameLogits) {
  Context ctx;
  const SparseFeatures x = features({{0}, {0}, {2}, {2}});
  const LogisticLoss loss(ctx, x, std::vector<int32_t>{0, 0, 1, 1}, 2, 1);
  std::vector<double> weight(2);
  std::vector<double> bias(2);
  loss.unscale(std::vector<double>{3, -3, 1, 2}, weight, bias);
  EXPECT_EQ(weight, (std::vector<double>{3, -3}));
  EXPECT_EQ(bias, (std::vector<double>{1 - 3, 2 + 3}));
}

// By symmetry w1 = -w0 = w; at the minimum of log(1 + exp(-2 w)) + w^2 / (C n),
// w = C n / (1 + exp(2 w)).
TEST(LogisticRegression, ReachesTheMinimumThatCanBeWrittenDown) {
  Context ctx;
  const SparseFeatures x = features({{0}, {0}, {2}, {2}});
  const auto model = fit_logistic_regression(ctx, x, std::vector<int32_t>{0, 0, 1, 1}, 2, 0.25);
  double w = 0.3;
  for (int i = 0; i < 200; ++i) w = 0.5 * w + 0.5 / (1 + std::exp(2 * w));
  EXPECT_NEAR(model.weight.as<float>()[1], w, 2e-6);
  EXPECT_NEAR(model.weight.as<float>()[0], -w, 2e-6);
  EXPECT_NEAR(model.bias.as<float>()[1], -w, 2e-6);
  const Tensor p = model.probabilities(ctx, x);
  EXPECT_NEAR(p.as<float>()[1], 1 / (1 + std::exp(2 * w)), 2e-6);
}

// Three classes, of which class 0 has no cell; column 1 is constant, column 2 empty.
TEST(LogisticRegression, ClassWithoutCellsHasProbabilityZero) {
  Context ctx;
  const SparseFeatures x = features({{0, 5, 0}, {0, 5, 0}, {2, 5, 0}, {2, 5, 0}});
  const auto model = fit_logistic_regression(ctx, x, std::vector<int32_t>{1, 1, 2, 2}, 3, 0.25);
  EXPECT_EQ(model.present, (std::vector<int32_t>{1, 2}));
  for (int i = 2; i < 6; ++i) EXPECT_EQ(model.weight.as<float>()[i], 0.0f);
  const Tensor p = model.probabilities(ctx, x);
  for (int64_t i = 0; i < 4; ++i) {
    const float* row = p.as<float>() + i * 3;
    EXPECT_EQ(row[0], 0.0f);
    EXPECT_FLOAT_EQ(row[1] + row[2], 1.0f);
    EXPECT_EQ(row[1] > row[2], i < 2);
  }
}

TEST(LogisticRegression, ASingleClassIsCertain) {
  Context ctx;
  const SparseFeatures x = features({{1, 0}, {0, 1}});
  const auto model = fit_logistic_regression(ctx, x, std::vector<int32_t>{1, 1}, 2, 0.05);
  const Tensor p = model.probabilities(ctx, x);
  EXPECT_EQ(values_of(p.view()), (std::vector<double>{0, 1, 0, 1}));
}

// The unpenalised intercept alone has to give the shares of the classes.
TEST(LogisticRegression, WithoutSignalGivesTheSharesOfTheClasses) {
  Context ctx;
  const SparseFeatures x = features({{3}, {3}, {3}, {3}});
  const auto model = fit_logistic_regression(ctx, x, std::vector<int32_t>{0, 1, 1, 1}, 2, 0.05);
  EXPECT_NEAR(model.probabilities(ctx, x).as<float>()[1], 0.75, 1e-5);
}

// Large enough for several tasks (training/parallel_blocks.h).
TEST(LogisticRegression, ThreadsChangeNoBit) {
  const SparseFeatures x = random_features(700, 300, 1);
  std::vector<int32_t> labels;
  for (int i = 0; i < 700; ++i) labels.push_back(i % 60);
  Context one(Device::cpu(), {.threads = 1});
  Context four(Device::cpu(), {.threads = 4});
  const auto a = fit_logistic_regression(one, x, labels, 60, 0.05);
  const auto b = fit_logistic_regression(four, x, labels, 60, 0.05);
  expect_same_bits(a.weight.view(), b.weight.view());
  expect_same_bits(a.bias.view(), b.bias.view());
  expect_same_bits(a.probabilities(one, x).view(), b.probabilities(four, x).view());
}

TEST(LogisticRegression, RefusesWhatCannotBeFitted) {
  Context ctx;
  const SparseFeatures x = features({{1}, {2}});
  const std::vector<int32_t> labels = {0, 1};
  expect_error("C must be above 0, got 0", [&] { fit_logistic_regression(ctx, x, labels, 2, 0); });
  expect_error("label 1, classes are 0 to 0",
               [&] { fit_logistic_regression(ctx, x, labels, 1, 1); });
  expect_error("at least one labelled cell",
               [&] { fit_logistic_regression(ctx, x.selected({}), {}, 2, 1); });
  const auto model = fit_logistic_regression(ctx, x, labels, 2, 1);
  expect_error("trained on 1 columns, these features have 2", [&] {
    model.probabilities(ctx, features({{1, 2}}));
  });
}

// ---- the minimiser ------------------------------------------------------------------------

TEST(Lbfgs, FindsTheBottomOfRosenbrocksValley) {
  std::vector<double> x = {-1.2, 1.0};
  const LbfgsResult r = minimise_lbfgs(x,
                                       [](std::span<const double> p, std::span<double> g) {
                                         const double a = p[1] - p[0] * p[0];
                                         g[0] = -400 * p[0] * a - 2 * (1 - p[0]);
                                         g[1] = 200 * a;
                                         return 100 * a * a + (1 - p[0]) * (1 - p[0]);
                                       },
                                       {.tolerance = 1e-8});
  EXPECT_EQ(r.stop, LbfgsStop::converged);
  EXPECT_LT(r.iterations, 60);
  EXPECT_NEAR(x[0], 1, 1e-7);
  EXPECT_NEAR(x[1], 1, 1e-7);
}

// Curvatures from 1 to 10^4; steepest descent would need some 10^5 steps.
TEST(Lbfgs, SolvesABadlyScaledQuadratic) {
  std::vector<double> x(50, 1.0);
  const LbfgsResult r = minimise_lbfgs(x,
                                       [](std::span<const double> p, std::span<double> g) {
                                         double value = 0;
                                         for (size_t i = 0; i < p.size(); ++i) {
                                           const double scale =
                                               std::pow(10.0, 4.0 * static_cast<double>(i) / 49);
                                           g[i] = scale * (p[i] - static_cast<double>(i));
                                           value += 0.5 * g[i] * (p[i] - static_cast<double>(i));
                                         }
                                         return value;
                                       },
                                       {.max_iterations = 2000});
  EXPECT_EQ(r.stop, LbfgsStop::converged);
  EXPECT_LT(r.evaluations, 2 * r.iterations);
  for (size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(x[i], static_cast<double>(i), 1e-6);
}

TEST(Lbfgs, StopsAtTheLimitAndKeepsTheBestPoint) {
  std::vector<double> x = {10};
  const LbfgsResult r = minimise_lbfgs(x,
                                       [](std::span<const double> p, std::span<double> g) {
                                         g[0] = 4 * p[0] * p[0] * p[0];
                                         return p[0] * p[0] * p[0] * p[0];
                                       },
                                       {.max_iterations = 2});
  EXPECT_EQ(r.stop, LbfgsStop::iterations);
  EXPECT_EQ(r.iterations, 2);
  EXPECT_DOUBLE_EQ(r.value, std::pow(x[0], 4));
  EXPECT_LT(r.value, 1e4);
}

// A gradient that points the wrong way: no step is better, and the start is kept.
TEST(Lbfgs, GivesUpWhereNothingIsBetter) {
  std::vector<double> x = {1};
  const LbfgsResult r = minimise_lbfgs(x, [](std::span<const double> p, std::span<double> g) {
    g[0] = -2 * p[0];
    return p[0] * p[0];
  });
  EXPECT_EQ(r.stop, LbfgsStop::line_search);
  EXPECT_EQ(x[0], 1);
}

// Beyond 2 the function is not defined; the line search has to come back from there.
TEST(Lbfgs, ComesBackFromWhereTheFunctionIsNotFinite) {
  std::vector<double> x = {0};
  const LbfgsResult r = minimise_lbfgs(x, [](std::span<const double> p, std::span<double> g) {
    g[0] = -100 + 1 / (2 - p[0]);
    return -100 * p[0] - std::log(2 - p[0]);
  });
  EXPECT_EQ(r.stop, LbfgsStop::converged);
  EXPECT_NEAR(x[0], 1.99, 1e-7);
}

TEST(Lbfgs, RefusesAStartThatIsNotFinite) {
  std::vector<double> x = {0};
  expect_error("not finite at its start", [&] {
    minimise_lbfgs(x, [](std::span<const double>, std::span<double> g) {
      g[0] = 0;
      return std::nan("");
    });
  });
}

}  // namespace
}  // namespace scgraft
