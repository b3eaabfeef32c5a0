// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <memory>
#include <optional>
#include <string>

#include "app/session.h"
#include "training/run_events.h"

namespace scgraft {

// Shows what a training run tells: progress on stderr, and numbers in the run folder's
// metrics.jsonl and metrics.csv. From now on signals ask the run to stop (app/signals.h): a
// training keeps what it learned, annotation and embedding end with nothing written.
class RunReporter {
 public:
  // folder: of the run; empty: no files are written.
  RunReporter(Session& session, const std::string& folder);
  ~RunReporter();

  // Valid as long as this object.
  const RunEvents& events() const { return events_; }
  // Ends the progress line and writes metrics.csv.
  void finish();

 private:
  void progress(const char* phase, int64_t done, int64_t total);

  Session& session_;
  RunEvents events_;
  struct Files;
  std::unique_ptr<Files> files_;
  std::string phase_;
  std::optional<Progress> bar_;
  std::string note_;
};

// The exit code of a training run that ended early on purpose: 75 for --max-time, 128 + n for a
// signal; 0 otherwise. Tells the user.
void set_exit_code_of(Session& session, const TrainerResult& training);

}  // namespace scgraft
