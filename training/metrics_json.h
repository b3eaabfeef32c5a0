// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <nlohmann/json.hpp>
#include <span>
#include <string>

#include "training/metrics.h"

namespace scgraft {

// The metrics as they are stored beside an adapter and printed by --json: the numbers under their
// field names, a per-class table by label, and the confusion matrix (rows = truth). What is not
// finite becomes null with "<name>_nonfinite" beside it.
//   labels  [classes]
nlohmann::json metrics_json(const ClassificationMetrics& metrics,
                            std::span<const std::string> labels);

// `value` under `name`; not finite: null and "<name>_nonfinite".
void set_number(nlohmann::json& object, const std::string& name, double value);

}  // namespace scgraft
