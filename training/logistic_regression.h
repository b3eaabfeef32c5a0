// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "runtime/context.h"
#include "runtime/tensor.h"
#include "training/sparse_features.h"

namespace scgraft {

// The loss that multinomial logistic regression minimises, per cell.
//
//   z_i  = W s_i + b,   s_i = (x_i - mean) / deviation of each column, 0 where it is constant
//   loss = (1/n) * ( sum over i of -log softmax(z_i)[label_i]  +  |W|^2 / (2 C) )
//
// The minimum is that of features that are only divided by their deviation, as b is not penalised:
// taking the mean off moves b alone, and lets the minimiser need fewer steps. The matrix stays
// sparse. All arithmetic is in f64; sums run in the order of cells and of columns.
// Source: the objective of scikit-learn's LogisticRegression(multi_class="multinomial").
class LogisticLoss {
 public:
  // x is kept by reference. labels [x.rows()], each in [0, classes); c > 0.
  // Throws ShapeError, and ConfigError for c.
  LogisticLoss(Context& ctx, const SparseFeatures& x, std::span<const int32_t> labels,
               int32_t classes, double c);

  // Parameters are W transposed [columns, classes], then b [classes].
  int64_t size() const { return (x_.columns + 1) * classes_; }
  double operator()(std::span<const double> parameters, std::span<double> gradient);

  // The same classifier on features as they are: weight [columns, classes], bias [classes].
  void unscale(std::span<const double> parameters, std::span<double> weight,
               std::span<double> bias) const;

 private:
  Context& ctx_;
  const SparseFeatures& x_;
  SparseFeatures by_column_;
  std::vector<int32_t> labels_;
  int64_t classes_;
  double c_;
  std::vector<double> mean_;    // [columns]
  std::vector<double> scale_;   // [columns] 1 / deviation, 0 where constant
  std::vector<double> weight_;  // [columns, classes] on features as they are
  std::vector<double> bias_;    // [classes]
  std::vector<double> errors_;  // [rows, classes] logits, then d loss_i / d z
};

// A fitted multinomial logistic regression.
struct LogisticRegression {
  int32_t classes = 0;
  std::vector<int32_t> present;  // classes that had cells, ascending; the others have probability 0
  Tensor weight;                 // [columns, present] f32
  Tensor bias;                   // [present] f32

  int64_t columns() const { return weight.dim(0); }
  // softmax(x W + b), [rows, classes] f32.
  Tensor probabilities(Context& ctx, const SparseFeatures& x) const;
};

// Minimises LogisticLoss over the classes that occur. With one class its probability is 1.
//
//   labels  [x.rows()]  0 <= label < classes
//   c       weight of the cells against the penalty, above 0, else ConfigError
//
// Logs W-BASELINE-STEPS when the minimum was not reached.
// Throws DataError("E-BASELINE") without cells.
LogisticRegression fit_logistic_regression(Context& ctx, const SparseFeatures& x,
                                           std::span<const int32_t> labels, int32_t classes,
                                           double c);

}  // namespace scgraft
