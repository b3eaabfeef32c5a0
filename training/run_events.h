// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <functional>
#include <string>

#include "runtime/error.h"
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

// Work that leaves nothing behind was stopped because somebody asked for it (exit 75, or 128 + the
// signal).
class StoppedError : public Error {
 public:
  explicit StoppedError(const std::string& message, ExitCode exit = ExitCode::stopped)
      : Error(message, "E-STOPPED", exit) {}
};

// What a run tells while it works. Every one may be empty.
struct RunEvents {
  // phase: "read", "baselines", "train", ...; total 0: not known.
  std::function<void(const char* phase, int64_t done, int64_t total)> progress;
  std::function<void(const StepReport&)> step;
  std::function<void(const EpochReport&)> epoch;
  // Asked between batches. A training then ends with what it learned; annotation, embedding and
  // attribution, which have nothing to save, throw StoppedError.
  std::function<bool()> stop_requested;

  void tell(const char* phase, int64_t done, int64_t total) const {
    if (progress) progress(phase, done, total);
  }
  // Throws StoppedError when stop_requested says so.
  void check_stop() const {
    if (stop_requested && stop_requested())
      throw StoppedError("stopped before the end; nothing was written");
  }
};

}  // namespace scgraft
