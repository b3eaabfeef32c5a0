// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <vector>

#include "runtime/context.h"
#include "runtime/tensor.h"
#include "training/class_prediction.h"

namespace scgraft {

// Classifies a cell by the labels of the k known cells whose embeddings make the smallest angle
// with its own. A row of zeros has cosine 0 with everything.
//
// Of equally near cells the earlier row is nearer; of classes with as many votes the lowest wins.
// Probabilities are the shares of the votes.
// Source: scikit-learn's KNeighborsClassifier(metric="cosine"), which breaks ties the same way.
class NearestNeighbours {
 public:
  //   rows        [n, dim] f32, n > 0; copied
  //   labels      [n]  0 <= label < classes
  //   neighbours  k > 0, else ConfigError; all rows vote when there are fewer
  // Throws ShapeError, DataError("E-BASELINE") without rows, NumericalError for a value that is
  // not finite.
  NearestNeighbours(Context& ctx, ConstTensorView rows, std::vector<int32_t> labels,
                    int32_t classes, int64_t neighbours);

  //   rows  [n, dim] f32, finite, else NumericalError
  ClassPrediction predict(Context& ctx, ConstTensorView rows) const;

  // Rows of unit length, or zero [n, dim] f32. The constructor leaves such rows as they are, so
  // that a saved copy makes the same predictions bit for bit.
  const Tensor& rows() const { return rows_; }
  const std::vector<int32_t>& labels() const { return labels_; }
  int64_t neighbours() const { return neighbours_; }

 private:
  Tensor rows_;
  std::vector<int32_t> labels_;
  int32_t classes_;
  int64_t neighbours_;
};

}  // namespace scgraft
