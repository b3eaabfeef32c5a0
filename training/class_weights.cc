// SPDX-License-Identifier: Apache-2.0
#include "training/class_weights.h"

#include <algorithm>
#include <numeric>
#include <string>

#include "runtime/error.h"

namespace scgraft {

ClassWeighting parse_class_weighting(std::string_view word) {
  if (word == "none") return ClassWeighting::none;
  if (word == "balanced") return ClassWeighting::balanced;
  if (word == "scpeft") return ClassWeighting::scpeft;
  ConfigError error(cat("class_weights must be none, balanced or scpeft, got \"",
                        std::string(word.substr(0, 40)), "\""),
                    "E-CLASS-WEIGHTS");
  error.set_hint("balanced gives rare cell types the same say as common ones");
  throw error;
}

std::vector<int64_t> class_counts(std::span<const int32_t> labels, int32_t n_classes) {
  std::vector<int64_t> counts(static_cast<size_t>(n_classes), 0);
  for (const int32_t label : labels) {
    require(label >= -1 && label < n_classes, "class_counts: label ", label, " with ", n_classes,
            " classes");
    if (label >= 0) ++counts[static_cast<size_t>(label)];
  }
  return counts;
}

std::vector<float> class_weights(ClassWeighting weighting, std::span<const int64_t> counts) {
  std::vector<float> weights(counts.size(), 1.0f);
  if (weighting == ClassWeighting::none) return weights;
  const auto cells = static_cast<double>(std::accumulate(counts.begin(), counts.end(), int64_t{0}));
  const auto present = static_cast<double>(
      std::count_if(counts.begin(), counts.end(), [](int64_t n) { return n > 0; }));
  for (size_t c = 0; c < counts.size(); ++c) {
    if (counts[c] == 0) continue;
    const auto n = static_cast<double>(counts[c]);
    const double rest = 1 - n / cells;
    weights[c] = static_cast<float>(weighting == ClassWeighting::balanced ? cells / (present * n)
                                                                          : rest * rest);
  }
  return weights;
}

}  // namespace scgraft
