// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>

#include "runtime/context.h"
#include "runtime/tensor.h"
#include "training/class_prediction.h"
#include "training/logistic_regression.h"
#include "training/nearest_neighbours.h"
#include "training/sparse_features.h"
#include "training/truncated_svd.h"

namespace scgraft {

struct BaselineOptions {
  double c = 0.05;          // of the logistic regression, see LogisticLoss
  int64_t components = 50;  // of the truncated SVD
  int64_t neighbours = 10;
  uint64_t seed = 0;  // of the random projection
};

// Two cheap classifiers of cells on log-normalised expression, which an adapted model has to beat:
//   logistic    multinomial logistic regression, features divided by their standard deviation
//   neighbours  k nearest neighbours by cosine after a truncated SVD of the features
// Results depend on the data, the options and nothing else; the number of threads changes no bit.
class Baselines {
 public:
  //   labels   [train.rows()]  0 <= label < classes, -1 = missing (the cell is left out)
  //   classes  classes without cells get probability 0
  //
  // Throws DataError("E-BASELINE") when no cell has a label or there are no genes, ConfigError for
  // the options, ShapeError for labels that do not fit.
  static Baselines fit(Context& ctx, const SparseFeatures& train, std::span<const int32_t> labels,
                       int32_t classes, const BaselineOptions& options = {});

  // Features must have columns() columns, else ShapeError.
  ClassPrediction logistic(Context& ctx, const SparseFeatures& features) const;
  ClassPrediction neighbours(Context& ctx, const SparseFeatures& features) const;

  int64_t columns() const { return logistic_.columns(); }
  int32_t classes() const { return logistic_.classes; }

  // What is saved beside an adapter; from_tensors() gives the same predictions bit for bit.
  //   classes                i32 [1]
  //   logistic.classes       i32 [present]               classes that had cells, ascending
  //   logistic.weight        f32 [columns, present]
  //   logistic.bias          f32 [present]
  //   svd.components         f32 [columns, components]
  //   neighbours.rows        f32 [cells, components]     of unit length
  //   neighbours.labels      i32 [cells]
  //   neighbours.k           i32 [1]
  std::map<std::string, Tensor> tensors() const;

  //   file  name for messages
  // Throws ModelError: E-TENSOR-MISSING, E-TENSOR-EXTRA, E-TENSOR-DTYPE, E-TENSOR-SHAPE,
  // E-BASELINE (a label or a value that cannot be).
  static Baselines from_tensors(const std::map<std::string, Tensor>& tensors,
                                const std::string& file);

 private:
  Baselines() = default;

  LogisticRegression logistic_;
  TruncatedSvd svd_;
  std::optional<NearestNeighbours> neighbours_;  // always set
};

}  // namespace scgraft
