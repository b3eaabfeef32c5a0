// SPDX-License-Identifier: Apache-2.0
#include "training/baselines.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>
#include <vector>

#include "io/file_error.h"
#include "io/text.h"
#include "runtime/error.h"
#include "training/metrics.h"

namespace scgraft {
namespace {

constexpr std::array kNames = {"classes",         "logistic.bias", "logistic.classes",
                               "logistic.weight", "neighbours.k",  "neighbours.labels",
                               "neighbours.rows", "svd.components"};

Tensor integers(const std::vector<int32_t>& values) {
  Tensor t({static_cast<int64_t>(values.size())}, DType::i32);
  std::copy(values.begin(), values.end(), t.as<int32_t>());
  return t;
}

// The tensors of a file, looked at before anything is believed.
class Reader {
 public:
  Reader(const std::map<std::string, Tensor>& tensors, const std::string& file)
      : tensors_(tensors), file_(file) {
    for (const char* name : kNames)
      if (!tensors.contains(name))
        fail(name, cat("the baselines lack the tensor ", name), "E-TENSOR-MISSING");
    for (const auto& [name, tensor] : tensors)
      if (std::find(kNames.begin(), kNames.end(), name) == kNames.end())
        fail(escaped(name), cat("the baselines hold an unknown tensor ", escaped(name)),
             "E-TENSOR-EXTRA");
  }

  // A dimension of -1 in `shape` fits any number.
  const Tensor& tensor(const char* name, DType dtype, std::vector<int64_t> shape) const {
    const Tensor& t = tensors_.at(name);
    if (t.dtype() != dtype)
      fail(name, cat(name, " should be ", dtype, ", it is ", t.dtype()), "E-TENSOR-DTYPE");
    bool fits = t.rank() == static_cast<int>(shape.size());
    for (int i = 0; fits && i < t.rank(); ++i) {
      const int64_t want = shape[static_cast<size_t>(i)];
      fits = want < 0 || t.dim(i) == want;
    }
    if (!fits) {
      std::string want;
      for (const int64_t d : shape)
        want += (want.empty() ? "" : ", ") + (d < 0 ? std::string("any") : cat(d));
      fail(name, cat(name, " should be [", want, "], it is ", t.shape()), "E-TENSOR-SHAPE");
    }
    if (dtype == DType::f32) want_finite(name, t);
    return t;
  }

  // Integers, each in [low, high).
  std::vector<int32_t> integers_of(const char* name, int64_t length, int32_t low,
                                   int32_t high) const {
    const Tensor& t = tensor(name, DType::i32, {length});
    const int32_t* data = t.as<int32_t>();
    std::vector<int32_t> values(data, data + t.numel());
    for (const int32_t v : values)
      if (v < low || v >= high)
        fail(name,
             cat(name, " holds ", v, ", values from ", low, " to ", high - 1, " were expected"),
             "E-BASELINE");
    return values;
  }

  [[noreturn]] void fail(const std::string& object, const std::string& message,
                         const std::string& code) const {
    throw_file_error(FileKind::model, file_, message, code,
                     "train the adapter again to have its baselines written anew", object);
  }

 private:
  void want_finite(const char* name, const Tensor& t) const {
    const float* data = t.as<float>();
    if (!std::all_of(data, data + t.numel(), [](float v) { return std::isfinite(v); }))
      fail(name, cat(name, " holds values that are not finite"), "E-BASELINE");
  }

  const std::map<std::string, Tensor>& tensors_;
  const std::string& file_;
};

}  // namespace

Baselines Baselines::fit(Context& ctx, const SparseFeatures& train, std::span<const int32_t> labels,
                         int32_t classes, const BaselineOptions& options) {
  require(static_cast<int64_t>(labels.size()) == train.rows(), "baselines: ", train.rows(),
          " cells, ", labels.size(), " labels");
  std::vector<int64_t> labelled;
  std::vector<int32_t> known;
  for (size_t i = 0; i < labels.size(); ++i) {
    if (labels[i] == -1) continue;
    labelled.push_back(static_cast<int64_t>(i));
    known.push_back(labels[i]);
  }
  if (known.empty() || train.columns == 0) {
    DataError error(cat("the baselines need labelled cells and genes, got ", known.size(),
                        " labelled cells of ", train.rows(), " and ", train.columns, " genes"),
                    "E-BASELINE");
    error.set_hint("check label_key and the genes that the data and the model share");
    throw error;
  }
  const bool all = known.size() == labels.size();
  const SparseFeatures chosen = all ? SparseFeatures() : train.selected(labelled);
  const SparseFeatures& features = all ? train : chosen;

  Baselines b;
  b.logistic_ = fit_logistic_regression(ctx, features, known, classes, options.c);
  b.svd_ = fit_truncated_svd(ctx, features, options.components, options.seed);
  const Tensor rows = b.svd_.project(ctx, features);
  b.neighbours_.emplace(ctx, rows.view(), std::move(known), classes, options.neighbours);
  return b;
}

ClassPrediction Baselines::logistic(Context& ctx, const SparseFeatures& features) const {
  ClassPrediction out;
  out.probabilities = logistic_.probabilities(ctx, features);
  out.label = most_probable_classes(std::as_const(out.probabilities).view());
  return out;
}

ClassPrediction Baselines::neighbours(Context& ctx, const SparseFeatures& features) const {
  const Tensor rows = svd_.project(ctx, features);
  return neighbours_->predict(ctx, rows.view());
}

std::map<std::string, Tensor> Baselines::tensors() const {
  std::map<std::string, Tensor> out;
  out.emplace("classes", integers({logistic_.classes}));
  out.emplace("logistic.classes", integers(logistic_.present));
  out.emplace("logistic.weight", logistic_.weight.clone());
  out.emplace("logistic.bias", logistic_.bias.clone());
  out.emplace("svd.components", svd_.components.clone());
  out.emplace("neighbours.rows", neighbours_->rows().clone());
  out.emplace("neighbours.labels", integers(neighbours_->labels()));
  out.emplace("neighbours.k", integers({static_cast<int32_t>(neighbours_->neighbours())}));
  return out;
}

Baselines Baselines::from_tensors(const std::map<std::string, Tensor>& tensors,
                                  const std::string& file) {
  const Reader reader(tensors, file);
  constexpr int32_t kAny = 1 << 20;  // a row of probabilities must fit in memory
  Baselines b;
  b.logistic_.classes = reader.integers_of("classes", 1, 1, kAny)[0];
  const int32_t classes = b.logistic_.classes;
  b.logistic_.present = reader.integers_of("logistic.classes", -1, 0, classes);
  const std::vector<int32_t>& present = b.logistic_.present;
  if (present.empty() ||
      std::adjacent_find(present.begin(), present.end(), std::greater_equal<>()) != present.end())
    reader.fail("logistic.classes", "logistic.classes should hold ascending classes", "E-BASELINE");
  const auto n_present = static_cast<int64_t>(present.size());
  b.logistic_.weight = reader.tensor("logistic.weight", DType::f32, {-1, n_present}).clone();
  b.logistic_.bias = reader.tensor("logistic.bias", DType::f32, {n_present}).clone();
  b.svd_.components = reader.tensor("svd.components", DType::f32, {b.columns(), -1}).clone();
  std::vector<int32_t> labels = reader.integers_of("neighbours.labels", -1, 0, classes);
  if (labels.empty()) reader.fail("neighbours.labels", "neighbours.labels is empty", "E-BASELINE");
  const Tensor& rows =
      reader.tensor("neighbours.rows", DType::f32,
                    {static_cast<int64_t>(labels.size()), b.svd_.components.dim(1)});
  const int32_t k = reader.integers_of("neighbours.k", 1, 1, kAny)[0];
  Context ctx(Device::cpu());
  b.neighbours_.emplace(ctx, rows.view(), std::move(labels), classes, k);
  return b;
}

}  // namespace scgraft
