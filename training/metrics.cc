// SPDX-License-Identifier: Apache-2.0
#include "training/metrics.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace scgraft {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kSmallestProbability = 1e-15;

double ratio(double part, double whole) { return whole > 0 ? part / whole : 0.0; }

void check(std::span<const int32_t> truth, std::span<const int32_t> predicted, int32_t n_classes,
           const ConstTensorView& probabilities) {
  require(n_classes > 0, "metrics: there must be at least one class, got ", n_classes);
  require(truth.size() == predicted.size(), "metrics: truth has ", truth.size(),
          " cells, predicted has ", predicted.size());
  for (size_t i = 0; i < truth.size(); ++i) {
    require(truth[i] >= -1 && truth[i] < n_classes, "metrics: truth[", i, "] is ", truth[i],
            ", classes are 0 to ", n_classes - 1, " or -1");
    require(predicted[i] >= -1 && predicted[i] < n_classes, "metrics: predicted[", i, "] is ",
            predicted[i], ", classes are 0 to ", n_classes - 1, " or -1");
  }
  if (probabilities.empty()) return;
  const Shape want{static_cast<int64_t>(truth.size()), n_classes};
  require(probabilities.shape() == want, "metrics: probabilities must be ", want, ", got ",
          probabilities.shape());
}

void count(std::span<const int32_t> truth, std::span<const int32_t> predicted, int32_t n_classes,
           ClassificationMetrics& m) {
  m.classes.resize(static_cast<size_t>(n_classes));
  m.confusion.assign(static_cast<size_t>(n_classes) * static_cast<size_t>(n_classes), 0);
  for (size_t i = 0; i < truth.size(); ++i) {
    if (truth[i] < 0) continue;
    ++m.cells;
    ClassScore& own = m.classes[static_cast<size_t>(truth[i])];
    ++own.support;
    if (predicted[i] < 0) continue;
    ++m.classes[static_cast<size_t>(predicted[i])].predicted;
    if (predicted[i] == truth[i]) ++own.correct;
    ++m.confusion[static_cast<size_t>(truth[i]) * static_cast<size_t>(n_classes) +
                  static_cast<size_t>(predicted[i])];
  }
}

void average(ClassificationMetrics& m) {
  int64_t present = 0;
  int64_t occurring = 0;
  int64_t correct = 0;
  int64_t assigned = 0;
  for (ClassScore& c : m.classes) {
    const auto hits = static_cast<double>(c.correct);
    c.precision = ratio(hits, static_cast<double>(c.predicted));
    c.recall = ratio(hits, static_cast<double>(c.support));
    c.f1 = ratio(2 * hits, static_cast<double>(c.support + c.predicted));
    correct += c.correct;
    assigned += c.predicted;
    if (c.support + c.predicted == 0) continue;
    ++occurring;
    m.macro_precision += c.precision;
    m.macro_recall += c.recall;
    m.macro_f1 += c.f1;
    if (c.support == 0) continue;
    ++present;
    m.balanced_accuracy += c.recall;
    m.macro_f1_present += c.f1;
  }
  m.accuracy = static_cast<double>(correct) / static_cast<double>(m.cells);
  m.micro_f1 = 2.0 * static_cast<double>(correct) / static_cast<double>(m.cells + assigned);
  m.macro_precision /= static_cast<double>(occurring);
  m.macro_recall /= static_cast<double>(occurring);
  m.macro_f1 /= static_cast<double>(occurring);
  m.balanced_accuracy /= static_cast<double>(present);
  m.macro_f1_present /= static_cast<double>(present);
}

template <class T>
void calibrate(std::span<const int32_t> truth, std::span<const int32_t> predicted,
               Array<const T, 2> p, ClassificationMetrics& m) {
  double nll = 0;
  int64_t assigned = 0;
  m.reliability.resize(kReliabilityBins);
  for (size_t i = 0; i < truth.size(); ++i) {
    if (truth[i] < 0) continue;
    const auto cell = static_cast<int64_t>(i);
    nll -= std::log(std::max(static_cast<double>(p(cell, truth[i])), kSmallestProbability));
    if (predicted[i] < 0) continue;
    const auto confidence = static_cast<double>(p(cell, predicted[i]));
    if (std::isnan(confidence)) continue;
    const double place = std::ceil(confidence * kReliabilityBins) - 1;
    ReliabilityBin& bin =
        m.reliability[static_cast<size_t>(std::clamp(place, 0.0, kReliabilityBins - 1.0))];
    ++bin.count;
    ++assigned;
    bin.mean_confidence += confidence;
    if (predicted[i] == truth[i]) bin.accuracy += 1;
  }
  double error = 0;
  for (ReliabilityBin& bin : m.reliability) {
    if (bin.count == 0) continue;
    const auto n = static_cast<double>(bin.count);
    error += std::abs(bin.accuracy - bin.mean_confidence);
    bin.accuracy /= n;
    bin.mean_confidence /= n;
  }
  m.nll = nll / static_cast<double>(m.cells);
  m.ece = assigned > 0 ? error / static_cast<double>(assigned) : kNaN;
}

}  // namespace

ClassificationMetrics classification_metrics(std::span<const int32_t> truth,
                                             std::span<const int32_t> predicted, int32_t n_classes,
                                             ConstTensorView probabilities) {
  check(truth, predicted, n_classes, probabilities);
  ClassificationMetrics m;
  count(truth, predicted, n_classes, m);
  if (m.cells == 0) {
    m.accuracy = m.balanced_accuracy = m.micro_f1 = kNaN;
    m.macro_precision = m.macro_recall = m.macro_f1 = m.macro_f1_present = kNaN;
    return m;
  }
  average(m);
  if (!probabilities.empty()) {
    visit_real(probabilities.dtype(), [&]<class T>(Type<T>) {
      calibrate<T>(truth, predicted, probabilities.as<T, 2>(), m);
    });
  }
  return m;
}

std::vector<int32_t> most_probable_classes(ConstTensorView probabilities) {
  require(probabilities.rank() == 2 && probabilities.dim(1) > 0,
          "most_probable_classes: probabilities must be [cells, classes], got ",
          probabilities.shape());
  std::vector<int32_t> classes(static_cast<size_t>(probabilities.dim(0)));
  visit_real(probabilities.dtype(), [&]<class T>(Type<T>) {
    const auto p = probabilities.as<T, 2>();
    for (int64_t i = 0; i < p.dim(0); ++i) {
      const T* row = p.row(i);
      const bool missing = std::any_of(row, row + p.dim(1), [](T v) { return std::isnan(v); });
      classes[static_cast<size_t>(i)] =
          missing ? -1 : static_cast<int32_t>(std::max_element(row, row + p.dim(1)) - row);
    }
  });
  return classes;
}

}  // namespace scgraft
