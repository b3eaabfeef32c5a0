// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "runtime/tensor_view.h"

namespace scgraft {

// One row of the per-class table. Precision, recall and F1 are 0 where their denominator is 0.
struct ClassScore {
  int64_t support = 0;    // cells whose truth is this class
  int64_t predicted = 0;  // cells predicted as this class
  int64_t correct = 0;
  double precision = 0;  // correct / predicted
  double recall = 0;     // correct / support
  double f1 = 0;         // 2 correct / (support + predicted)
};

// One bar of a reliability diagram: cells whose confidence lies in (lower, lower + 1/15].
struct ReliabilityBin {
  int64_t count = 0;
  double mean_confidence = 0;  // 0 when empty
  double accuracy = 0;         // 0 when empty
};

inline constexpr int kReliabilityBins = 15;

// How well predicted classes agree with the truth.
struct ClassificationMetrics {
  int64_t cells = 0;  // with a known truth; the values below are NaN when there is none
  double accuracy = 0;
  double balanced_accuracy = 0;  // mean recall over the classes that occur in the truth
  // Means over the classes that occur in the truth or in the prediction.
  double macro_precision = 0;
  double macro_recall = 0;
  double macro_f1 = 0;
  double macro_f1_present = 0;  // mean F1 over the classes that occur in the truth
  double micro_f1 = 0;          // 2 correct / (cells + cells with a prediction)
  // Only with probabilities: mean of -ln p[truth], and the expected calibration error
  // sum over bins of count / n * |accuracy - mean confidence|.
  std::optional<double> nll;
  std::optional<double> ece;
  std::vector<ClassScore> classes;          // [n_classes]
  std::vector<int64_t> confusion;           // [n_classes, n_classes], row = truth
  std::vector<ReliabilityBin> reliability;  // [15], empty without probabilities
};

// Classification metrics over the cells whose truth is known.
//
//   truth          [n]             class of each cell; -1 = missing, the cell is left out
//   predicted      [n]             class of each cell; -1 = none, counts as wrong
//   n_classes                      classes are 0 .. n_classes - 1
//   probabilities  [n, n_classes]  f32 or f64, may be empty; confidence is the probability of the
//                                  predicted class; p[truth] is raised to at least 1e-15
//
// Throws ShapeError when lengths differ or a class is out of range.
// Source: the definitions of scikit-learn's classification metrics; Guo et al., On Calibration of
// Modern Neural Networks (2017), for the expected calibration error.
ClassificationMetrics classification_metrics(std::span<const int32_t> truth,
                                             std::span<const int32_t> predicted, int32_t n_classes,
                                             ConstTensorView probabilities = {});

// The class of largest probability of each row, the lowest one of equals; -1 for a row with a NaN.
//   probabilities  [n, n_classes]  f32 or f64
std::vector<int32_t> most_probable_classes(ConstTensorView probabilities);

}  // namespace scgraft
