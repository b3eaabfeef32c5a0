// SPDX-License-Identifier: Apache-2.0
#include "training/metrics_json.h"

#include "io/json.h"
#include "runtime/error.h"

namespace scgraft {

nlohmann::json metrics_json(const ClassificationMetrics& metrics,
                            std::span<const std::string> labels) {
  require(labels.size() == metrics.classes.size(), "metrics_json: ", labels.size(), " labels for ",
          metrics.classes.size(), " classes");
  nlohmann::json out = {{"cells", metrics.cells}};
  set_number(out, "accuracy", metrics.accuracy);
  set_number(out, "balanced_accuracy", metrics.balanced_accuracy);
  set_number(out, "macro_precision", metrics.macro_precision);
  set_number(out, "macro_recall", metrics.macro_recall);
  set_number(out, "macro_f1", metrics.macro_f1);
  set_number(out, "macro_f1_present", metrics.macro_f1_present);
  set_number(out, "micro_f1", metrics.micro_f1);
  if (metrics.nll) set_number(out, "nll", *metrics.nll);
  if (metrics.ece) set_number(out, "ece", *metrics.ece);
  auto& table = out["per_class"] = nlohmann::json::array();
  auto& confusion = out["confusion"] = nlohmann::json::array();
  const size_t n = labels.size();
  for (size_t c = 0; c < n; ++c) {
    const ClassScore& score = metrics.classes[c];
    table.push_back({{"label", labels[c]},
                     {"support", score.support},
                     {"predicted", score.predicted},
                     {"precision", score.precision},
                     {"recall", score.recall},
                     {"f1", score.f1}});
    const auto row = metrics.confusion.begin() + static_cast<int64_t>(c * n);
    confusion.push_back(std::vector<int64_t>(row, row + static_cast<int64_t>(n)));
  }
  return out;
}

}  // namespace scgraft
