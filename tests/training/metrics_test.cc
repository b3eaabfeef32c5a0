// SPDX-License-Identifier: Apache-2.0
#include "training/metrics.h"

#include <cmath>
#include <limits>

#include "tests/testing/op_test.h"
#include "training/class_weights.h"

namespace scgraft {
namespace {

using ::testing::ElementsAre;

// Truth 0 0 0 1 1 2, predicted 0 0 1 1 3 0, four classes; class 3 is predicted but never true.
//   class  support predicted correct  precision recall F1
//   0         3        3        2       2/3      2/3   2/3
//   1         2        2        1       1/2      1/2   1/2
//   2         1        0        0        0        0     0
//   3         0        1        0        0        0     0
const std::vector<int32_t> kTruth{0, 0, 0, 1, 1, 2};
const std::vector<int32_t> kPredicted{0, 0, 1, 1, 3, 0};

TEST(MetricsTest, AgreeWithValuesComputedByHand) {
  const ClassificationMetrics m = classification_metrics(kTruth, kPredicted, 4);
  EXPECT_EQ(m.cells, 6);
  EXPECT_DOUBLE_EQ(m.accuracy, 3.0 / 6);
  EXPECT_DOUBLE_EQ(m.balanced_accuracy, (2.0 / 3 + 1.0 / 2 + 0) / 3);
  EXPECT_DOUBLE_EQ(m.macro_precision, (2.0 / 3 + 1.0 / 2) / 4);
  EXPECT_DOUBLE_EQ(m.macro_recall, (2.0 / 3 + 1.0 / 2) / 4);
  EXPECT_DOUBLE_EQ(m.macro_f1, (2.0 / 3 + 1.0 / 2) / 4);
  EXPECT_DOUBLE_EQ(m.macro_f1_present, (2.0 / 3 + 1.0 / 2) / 3);
  EXPECT_DOUBLE_EQ(m.micro_f1, 0.5);
  EXPECT_FALSE(m.nll.has_value());
  EXPECT_FALSE(m.ece.has_value());
  EXPECT_TRUE(m.reliability.empty());
}

TEST(MetricsTest, ClassTableAndConfusionMatrixHoldTheCounts) {
  const ClassificationMetrics m = classification_metrics(kTruth, kPredicted, 4);
  ASSERT_EQ(m.classes.size(), 4u);
  EXPECT_EQ(m.classes[0].support, 3);
  EXPECT_EQ(m.classes[0].predicted, 3);
  EXPECT_EQ(m.classes[0].correct, 2);
  EXPECT_DOUBLE_EQ(m.classes[0].f1, 2.0 / 3);
  EXPECT_DOUBLE_EQ(m.classes[1].precision, 0.5);
  EXPECT_DOUBLE_EQ(m.classes[2].f1, 0);
  EXPECT_EQ(m.classes[3].predicted, 1);
  EXPECT_THAT(m.confusion, ElementsAre(2, 1, 0, 0, 0, 1, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0));
}

TEST(MetricsTest, AClassThatOccursNowhereChangesNoMean) {
  const ClassificationMetrics four = classification_metrics(kTruth, kPredicted, 4);
  const ClassificationMetrics nine = classification_metrics(kTruth, kPredicted, 9);
  EXPECT_EQ(four.macro_f1, nine.macro_f1);
  EXPECT_EQ(four.balanced_accuracy, nine.balanced_accuracy);
  EXPECT_EQ(four.macro_f1_present, nine.macro_f1_present);
}

TEST(MetricsTest, CellsWithoutTruthAreLeftOut) {
  const std::vector<int32_t> truth{-1, 0, 0, 0, 1, 1, 2, -1};
  const std::vector<int32_t> predicted{2, 0, 0, 1, 1, 3, 0, -1};
  const ClassificationMetrics m = classification_metrics(truth, predicted, 4);
  EXPECT_EQ(m.cells, 6);
  EXPECT_DOUBLE_EQ(m.accuracy, 0.5);
  EXPECT_EQ(m.classes[2].predicted, 0);
}

TEST(MetricsTest, ACellWithoutPredictionCountsAsWrong) {
  const std::vector<int32_t> truth{0, 0, 1};
  const std::vector<int32_t> predicted{0, -1, 1};
  const ClassificationMetrics m = classification_metrics(truth, predicted, 2);
  EXPECT_DOUBLE_EQ(m.accuracy, 2.0 / 3);
  EXPECT_DOUBLE_EQ(m.balanced_accuracy, 0.75);
  EXPECT_DOUBLE_EQ(m.micro_f1, 4.0 / 5);
}

TEST(MetricsTest, WithoutAnyTruthTheValuesAreNotANumber) {
  const std::vector<int32_t> truth{-1, -1};
  const std::vector<int32_t> predicted{0, 1};
  const ClassificationMetrics m = classification_metrics(truth, predicted, 2);
  EXPECT_EQ(m.cells, 0);
  EXPECT_TRUE(std::isnan(m.accuracy));
  EXPECT_TRUE(std::isnan(m.macro_f1));
}

// Confidences 0.9 (right), 0.88 (wrong), 0.6 (right): two of the 15 bins are used, (13/15, 14/15]
// with both first cells and (8/15, 9/15] with the third.
TEST(MetricsTest, CalibrationErrorAndLikelihoodByHand) {
  const std::vector<int32_t> truth{0, 1, 1};
  const std::vector<int32_t> predicted{0, 0, 1};
  const Tensor p = tensor_of({3, 2}, DType::f64, {0.9, 0.1, 0.88, 0.12, 0.4, 0.6});
  const ClassificationMetrics m = classification_metrics(truth, predicted, 2, p.view());
  ASSERT_TRUE(m.nll && m.ece);
  EXPECT_NEAR(*m.nll, -(std::log(0.9) + std::log(0.12) + std::log(0.6)) / 3, 1e-14);
  EXPECT_NEAR(*m.ece, 2.0 / 3 * std::abs(0.5 - 0.89) + 1.0 / 3 * std::abs(1.0 - 0.6), 1e-14);
  ASSERT_EQ(m.reliability.size(), 15u);
  EXPECT_EQ(m.reliability[13].count, 2);
  EXPECT_DOUBLE_EQ(m.reliability[13].accuracy, 0.5);
  EXPECT_NEAR(m.reliability[13].mean_confidence, 0.89, 1e-14);
  EXPECT_EQ(m.reliability[8].count, 1);
}

TEST(MetricsTest, CertaintyFallsInTheLastBinAndAWrongOneStaysFinite) {
  const std::vector<int32_t> truth{1};
  const std::vector<int32_t> predicted{0};
  const Tensor p = tensor_of({1, 2}, DType::f32, {1, 0});
  const ClassificationMetrics m = classification_metrics(truth, predicted, 2, p.view());
  EXPECT_EQ(m.reliability[14].count, 1);
  EXPECT_DOUBLE_EQ(*m.ece, 1);
  EXPECT_NEAR(*m.nll, -std::log(1e-15), 1e-9);
}

TEST(MetricsTest, MostProbableClassTakesTheLowestOfEquals) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const Tensor p =
      tensor_of({4, 3}, DType::f32, {0.2, 0.4, 0.4, 1, 0, 0, 0.1, 0.2, 0.7, nan, nan, nan});
  EXPECT_THAT(most_probable_classes(p.view()), ElementsAre(1, 0, 2, -1));
}

TEST(MetricsTest, ErrorsNameTheCell) {
  const std::vector<int32_t> one{0};
  const std::vector<int32_t> bad{7};
  expect_error("truth[0] is 7, classes are 0 to 1", [&] { classification_metrics(bad, one, 2); });
  expect_error("predicted[0] is 7", [&] { classification_metrics(one, bad, 2); });
  expect_error("truth has 6 cells, predicted has 1",
               [&] { classification_metrics(kTruth, one, 4); });
  const Tensor p = tensor_of({1, 3}, DType::f32, {1, 0, 0});
  expect_error("probabilities must be [1, 2], got [1, 3]",
               [&] { classification_metrics(one, one, 2, p.view()); });
}

TEST(ClassWeightsTest, FormulasByHand) {
  const std::vector<int32_t> labels{0, 0, 0, 0, 0, 0, 1, 1, -1, 3, 3};
  const std::vector<int64_t> counts = class_counts(labels, 4);
  EXPECT_THAT(counts, ElementsAre(6, 2, 0, 2));
  EXPECT_THAT(class_weights(ClassWeighting::none, counts), ElementsAre(1, 1, 1, 1));
  // 10 cells, 3 classes with cells: 10 / (3 * 6), 10 / (3 * 2).
  EXPECT_THAT(class_weights(ClassWeighting::balanced, counts),
              ElementsAre(10.0f / 18, 10.0f / 6, 1.0f, 10.0f / 6));
  const std::vector<float> scpeft = class_weights(ClassWeighting::scpeft, counts);
  EXPECT_FLOAT_EQ(scpeft[0], 0.16f);
  EXPECT_FLOAT_EQ(scpeft[1], 0.64f);
  EXPECT_FLOAT_EQ(scpeft[2], 1.0f);
}

TEST(ClassWeightsTest, WordsAndErrors) {
  EXPECT_EQ(parse_class_weighting("none"), ClassWeighting::none);
  EXPECT_EQ(parse_class_weighting("balanced"), ClassWeighting::balanced);
  EXPECT_EQ(parse_class_weighting("scpeft"), ClassWeighting::scpeft);
  expect_error("class_weights must be none, balanced or scpeft, got \"equal\"",
               [] { parse_class_weighting("equal"); });
  const std::vector<int32_t> labels{4};
  expect_error("label 4 with 4 classes", [&] { class_counts(labels, 4); });
}

}  // namespace
}  // namespace scgraft
