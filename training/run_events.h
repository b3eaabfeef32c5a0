// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <functional>
#include <string>

#include "training/metrics.h"
#include "training/trainer.h"

namespace scgraft {

// Validation after an epoch.
struct EpochReport {
  int64_t epoch = 0;  // 0-based
  int64_t step = 0;   // optimizer steps so far
  double loss = 0;
  const ClassificationMetrics* metrics = nullptr;  // of classification
};

// What a run tells while it works. Every one may be empty.
struct RunEvents {
  // phase: "read", "baselines", "train", ...; total 0: not known.
  std::function<void(const char* phase, int64_t done, int64_t total)> progress;
  std::function<void(const StepReport&)> step;
  std::function<void(const EpochReport&)> epoch;
  std::function<bool()> stop_requested;

  void tell(const char* phase, int64_t done, int64_t total) const {
    if (progress) progress(phase, done, total);
  }
};

}  // namespace scgraft
