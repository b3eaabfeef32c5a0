// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "io/append_file.h"

namespace scgraft {

// One event of a run: a step, or the scores after an epoch.
struct MetricsEvent {
  int64_t step = 0;                           // optimizer steps so far
  int64_t epoch = 0;                          // 0-based
  std::string split = "train";                // or "validation", ...
  std::map<std::string, double> values = {};  // "loss", "lr", "grad_norm", "accuracy", ...
};

// Seconds since 1970-01-01 UTC, to the millisecond.
double unix_seconds();

// The record of a run in its folder.
//   metrics.jsonl  one JSON object per event and line, readable while the run goes on:
//                  step, epoch, split, the event's values, peak_rss_bytes (the process so far) and
//                  t (unix_seconds); a value that is not finite is null, with
//                  "<name>_nonfinite": "nan", "inf" or "-inf" beside it
//   metrics.csv    the same as a table, written by close(): a row per event, a column per name,
//                  empty where an event lacks it; nan, inf and -inf in words
// Numbers are written in their shortest form that reads back as the same value, in any locale.
//
// Throws StorageError; DataError (E-JSON, E-METRICS) when a log to be continued is not one.
class MetricsLog {
 public:
  // Starts anew: an old metrics.jsonl in the folder is replaced by an empty one.
  explicit MetricsLog(std::string folder, std::function<double()> clock = unix_seconds);
  // Continues the log of a run that goes on after `step`: events of later steps, which will happen
  // again, and a last line that a crash cut short are taken out.
  static MetricsLog continued(std::string folder, int64_t step,
                              std::function<double()> clock = unix_seconds);
  MetricsLog(MetricsLog&&) noexcept;
  ~MetricsLog();

  void add(const MetricsEvent& event);

  // Writes metrics.csv and flushes both files to the disk. Without it the table is missing.
  void close();

 private:
  MetricsLog(std::string folder, std::function<double()> clock, const std::string& kept);
  std::string folder_;
  std::function<double()> clock_;
  std::unique_ptr<AppendFile> lines_;
};

}  // namespace scgraft
