// SPDX-License-Identifier: Apache-2.0
#include "training/logistic_regression.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/ordered_sum.h"
#include "runtime/error.h"
#include "runtime/log.h"
#include "training/lbfgs.h"
#include "training/parallel_blocks.h"

namespace scgraft {
namespace {

// Operations of one exponential, about.
constexpr int64_t kExponential = 20;
// Largest element of the gradient of the loss per cell; classes do not change below it.
constexpr double kGradientTolerance = 1e-6;
constexpr int kMaxIterations = 500;

void check_labels(const SparseFeatures& x, std::span<const int32_t> labels, int32_t classes,
                  double c) {
  require<ConfigError>(std::isfinite(c) && c > 0, "logistic regression: C must be above 0, got ", c,
                       ". 0.05 is the default");
  require(classes > 0, "logistic regression: there must be at least one class, got ", classes);
  require(static_cast<int64_t>(labels.size()) == x.rows(), "logistic regression: ", x.rows(),
          " cells, ", labels.size(), " labels");
  for (const int32_t label : labels)
    require(label >= 0 && label < classes, "logistic regression: label ", label,
            ", classes are 0 to ", classes - 1);
}

// Turns logits into probabilities in place; returns log(sum of exp(logits)).
double softmax(double* z, int64_t n) {
  const double top = *std::max_element(z, z + n);
  double sum = 0;
  for (int64_t k = 0; k < n; ++k) sum += z[k] = std::exp(z[k] - top);
  for (int64_t k = 0; k < n; ++k) z[k] /= sum;
  return top + std::log(sum);
}

}  // namespace

LogisticLoss::LogisticLoss(Context& ctx, const SparseFeatures& x, std::span<const int32_t> labels,
                           int32_t classes, double c)
    : ctx_(ctx), x_(x), labels_(labels.begin(), labels.end()), classes_(classes), c_(c) {
  check_labels(x, labels, classes, c);
  by_column_ = x.transposed();
  const auto columns = static_cast<size_t>(x.columns);
  const auto n = static_cast<double>(x.rows());
  mean_.resize(columns);
  scale_.resize(columns);
  parallel_blocks(ctx, x.columns, 1 + x.rows() / 4, [&](int64_t column) {
    const auto values = by_column_.values_of(column);
    double sum = 0;
    for (const float v : values) sum += v;
    const double mean = sum / n;
    double squares = (n - static_cast<double>(values.size())) * mean * mean;
    for (const float v : values) squares += (v - mean) * (v - mean);
    const double deviation = std::sqrt(squares / n);
    // A constant column shows rounding errors of its mean, which must not be blown up.
    const bool varies = deviation > n * std::numeric_limits<double>::epsilon() * std::abs(mean);
    mean_[static_cast<size_t>(column)] = mean;
    scale_[static_cast<size_t>(column)] = varies ? 1 / deviation : 0.0;
  });
  weight_.resize(columns * static_cast<size_t>(classes_));
  bias_.resize(static_cast<size_t>(classes_));
  errors_.resize(static_cast<size_t>(x.rows() * classes_));
}

void LogisticLoss::unscale(std::span<const double> parameters, std::span<double> weight,
                           std::span<double> bias) const {
  const auto classes = static_cast<size_t>(classes_);
  const double* w = parameters.data();
  std::copy_n(w + x_.columns * classes_, classes, bias.begin());
  for (size_t c = 0; c < mean_.size(); ++c)
    for (size_t k = 0; k < classes; ++k) {
      weight[c * classes + k] = w[c * classes + k] * scale_[c];
      bias[k] -= weight[c * classes + k] * mean_[c];
    }
}

double LogisticLoss::operator()(std::span<const double> parameters, std::span<double> gradient) {
  require(static_cast<int64_t>(parameters.size()) == size() && gradient.size() == parameters.size(),
          "logistic regression: ", size(), " parameters were wanted, got ", parameters.size());
  const int64_t n = x_.rows();
  const auto classes = static_cast<size_t>(classes_);
  unscale(parameters, weight_, bias_);
  multiply<double>(ctx_, x_, weight_, classes_, errors_);
  std::vector<double> losses(static_cast<size_t>(n));
  parallel_blocks(ctx_, n, kExponential * classes_, [&](int64_t i) {
    double* z = errors_.data() + i * classes_;
    for (size_t k = 0; k < classes; ++k) z[k] += bias_[k];
    const auto label = static_cast<size_t>(labels_[static_cast<size_t>(i)]);
    const double own = z[label];
    losses[static_cast<size_t>(i)] = softmax(z, classes_) - own;
    z[label] -= 1;
  });

  const size_t n_weights = weight_.size();
  const std::span<double> dbias = gradient.subspan(n_weights);
  std::fill(dbias.begin(), dbias.end(), 0.0);
  for (int64_t i = 0; i < n; ++i)
    for (size_t k = 0; k < classes; ++k) dbias[k] += errors_[static_cast<size_t>(i) * classes + k];
  multiply<double>(ctx_, by_column_, errors_, classes_, gradient.first(n_weights));
  const double scale = 1.0 / static_cast<double>(n);
  parallel_blocks(ctx_, x_.columns, 4 * classes_, [&](int64_t column) {
    const auto c = static_cast<size_t>(column);
    for (size_t k = 0; k < classes; ++k) {
      double& d = gradient[c * classes + k];
      d = scale * ((d - mean_[c] * dbias[k]) * scale_[c] + parameters[c * classes + k] / c_);
    }
  });
  for (double& d : dbias) d *= scale;
  const double penalty =
      ordered_dot(parameters.data(), parameters.data(), static_cast<int64_t>(n_weights)) / (2 * c_);
  return scale *
         (ordered_sum<double>(n, [&](int64_t i) { return losses[static_cast<size_t>(i)]; }) +
          penalty);
}

LogisticRegression fit_logistic_regression(Context& ctx, const SparseFeatures& x,
                                           std::span<const int32_t> labels, int32_t classes,
                                           double c) {
  check_labels(x, labels, classes, c);
  if (labels.empty())
    throw DataError("logistic regression needs at least one labelled cell", "E-BASELINE");
  LogisticRegression model;
  model.classes = classes;
  std::vector<int32_t> number(static_cast<size_t>(classes), -1);
  for (const int32_t label : labels) number[static_cast<size_t>(label)] = 0;
  for (int32_t k = 0; k < classes; ++k)
    if (number[static_cast<size_t>(k)] == 0) {
      number[static_cast<size_t>(k)] = static_cast<int32_t>(model.present.size());
      model.present.push_back(k);
    }
  std::vector<int32_t> dense;
  for (const int32_t label : labels) dense.push_back(number[static_cast<size_t>(label)]);

  const auto n_present = static_cast<int64_t>(model.present.size());
  LogisticLoss loss(ctx, x, dense, static_cast<int32_t>(n_present), c);
  std::vector<double> parameters(static_cast<size_t>(loss.size()), 0.0);
  const LbfgsResult result = minimise_lbfgs(
      parameters,
      [&](std::span<const double> p, std::span<double> gradient) { return loss(p, gradient); },
      {.max_iterations = kMaxIterations, .tolerance = kGradientTolerance});
  if (result.stop != LbfgsStop::converged)
    log_warning("W-BASELINE-STEPS", "the logistic regression baseline stopped after ",
                result.iterations, " steps with a gradient of ", result.largest_gradient, ", ",
                kGradientTolerance, " was wanted; its scores may be slightly low");

  std::vector<double> weight(static_cast<size_t>(x.columns * n_present));
  std::vector<double> bias(static_cast<size_t>(n_present));
  loss.unscale(parameters, weight, bias);
  model.weight = Tensor({x.columns, n_present}, DType::f32);
  model.bias = Tensor({n_present}, DType::f32);
  std::copy(weight.begin(), weight.end(), model.weight.as<float>());
  std::copy(bias.begin(), bias.end(), model.bias.as<float>());
  return model;
}

Tensor LogisticRegression::probabilities(Context& ctx, const SparseFeatures& x) const {
  require(x.columns == columns(), "logistic regression: trained on ", columns(),
          " columns, these features have ", x.columns);
  const auto n_present = static_cast<int64_t>(present.size());
  std::vector<double> logits(static_cast<size_t>(x.rows() * n_present));
  const std::span<const float> factors(weight.as<float>(), static_cast<size_t>(weight.numel()));
  multiply<float>(ctx, x, factors, n_present, logits);
  Tensor out({x.rows(), classes}, DType::f32);
  const auto p = out.as<float, 2>();
  const float* b = bias.as<float>();
  parallel_blocks(ctx, x.rows(), kExponential * n_present, [&](int64_t i) {
    double* z = logits.data() + i * n_present;
    for (int64_t k = 0; k < n_present; ++k) z[k] += b[k];
    softmax(z, n_present);
    std::fill(p.row(i), p.row(i) + classes, 0.0f);
    for (int64_t k = 0; k < n_present; ++k)
      p(i, present[static_cast<size_t>(k)]) = static_cast<float>(z[k]);
  });
  return out;
}

}  // namespace scgraft
