// SPDX-License-Identifier: Apache-2.0
#include "training/nearest_neighbours.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "kernels/ordered_sum.h"
#include "runtime/error.h"
#include "runtime/parallel.h"

namespace scgraft {
namespace {

constexpr int64_t kQueriesPerTask = 16;

// Rows scaled to unit length; rows of zeros, and rows of unit length to f32 accuracy, stay.
Tensor unit_rows(ConstTensorView rows) {
  Tensor out(rows.shape(), DType::f32);
  const auto from = rows.as<float, 2>();
  const auto to = out.as<float, 2>();
  const int64_t dim = rows.dim(1);
  for (int64_t i = 0; i < rows.dim(0); ++i) {
    const float* x = from.row(i);
    const double length = std::sqrt(
        ordered_sum<double>(dim, [=](int64_t j) { return static_cast<double>(x[j]) * x[j]; }));
    require<NumericalError>(std::isfinite(length), "nearest neighbours: the embedding of cell ", i,
                            " is not finite");
    const bool keep = length == 0 || std::abs(length - 1) < 1e-6;
    for (int64_t j = 0; j < dim; ++j) to(i, j) = keep ? x[j] : static_cast<float>(x[j] / length);
  }
  return out;
}

}  // namespace

NearestNeighbours::NearestNeighbours(Context& ctx, ConstTensorView rows,
                                     std::vector<int32_t> labels, int32_t classes,
                                     int64_t neighbours)
    : labels_(std::move(labels)), classes_(classes), neighbours_(neighbours) {
  ctx.require_here("nearest_neighbours", rows);
  require<ConfigError>(neighbours > 0, "nearest neighbours: k must be above 0, got ", neighbours,
                       ". 10 is the default");
  require(rows.rank() == 2 && rows.dim(0) == static_cast<int64_t>(labels_.size()),
          "nearest neighbours: ", labels_.size(), " labels, embeddings of shape ", rows.shape());
  for (const int32_t label : labels_)
    require(label >= 0 && label < classes, "nearest neighbours: label ", label,
            ", classes are 0 to ", classes - 1);
  if (labels_.empty())
    throw DataError("nearest neighbours need at least one labelled cell", "E-BASELINE");
  rows_ = unit_rows(rows);
}

ClassPrediction NearestNeighbours::predict(Context& ctx, ConstTensorView rows) const {
  ctx.require_here("nearest_neighbours", rows);
  const int64_t dim = rows_.dim(1);
  require(rows.rank() == 2 && rows.dim(1) == dim, "nearest neighbours: embeddings of width ", dim,
          " were wanted, got shape ", rows.shape());
  const int64_t n = rows.dim(0);
  const int64_t known = rows_.dim(0);
  const int64_t k = std::min(neighbours_, known);
  const Tensor queries = unit_rows(rows);
  ClassPrediction out;
  out.label.resize(static_cast<size_t>(n));
  out.probabilities = Tensor({n, classes_}, DType::f32);
  const auto q = queries.as<float, 2>();
  const auto r = rows_.as<float, 2>();
  const auto p = out.probabilities.as<float, 2>();
  parallel_for(ctx, (n + kQueriesPerTask - 1) / kQueriesPerTask, [&](int64_t task) {
    std::vector<float> cosine(static_cast<size_t>(known));
    std::vector<int64_t> order(static_cast<size_t>(known));
    std::vector<int64_t> votes(static_cast<size_t>(classes_));
    const int64_t end = std::min(n, (task + 1) * kQueriesPerTask);
    for (int64_t i = task * kQueriesPerTask; i < end; ++i) {
      for (int64_t j = 0; j < known; ++j)
        cosine[static_cast<size_t>(j)] = ordered_dot(q.row(i), r.row(j), dim);
      std::iota(order.begin(), order.end(), int64_t{0});
      std::partial_sort(order.begin(), order.begin() + k, order.end(), [&](int64_t a, int64_t b) {
        const float ca = cosine[static_cast<size_t>(a)];
        const float cb = cosine[static_cast<size_t>(b)];
        return ca != cb ? ca > cb : a < b;
      });
      std::fill(votes.begin(), votes.end(), 0);
      for (int64_t j = 0; j < k; ++j) {
        const auto row = static_cast<size_t>(order[static_cast<size_t>(j)]);
        ++votes[static_cast<size_t>(labels_[row])];
      }
      out.label[static_cast<size_t>(i)] =
          static_cast<int32_t>(std::max_element(votes.begin(), votes.end()) - votes.begin());
      for (int32_t c = 0; c < classes_; ++c)
        p(i, c) = static_cast<float>(votes[static_cast<size_t>(c)]) / static_cast<float>(k);
    }
  });
  return out;
}

}  // namespace scgraft
