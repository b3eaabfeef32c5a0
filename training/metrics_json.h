// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <nlohmann/json.hpp>
#include <span>
#include <string>

#include "training/metrics.h"

namespace scgraft {

// The metrics as they are stored beside an adapter and printed by --json: the numbers under their
// field names, a per-class table by label, and the confusion matrix (rows = truth). What is not
// finite is written as set_number() does (io/json.h).
//   labels  [classes]
nlohmann::json metrics_json(const ClassificationMetrics& metrics,
                            std::span<const std::string> labels);

}  // namespace scgraft
