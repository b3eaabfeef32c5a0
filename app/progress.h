// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <functional>
#include <iosfwd>
#include <string>

namespace scgraft {

enum class ProgressStyle {
  automatic,  // bar on a terminal, else plain
  bar,        // one line, redrawn at most ten times a second
  plain,      // a line at the start, then one per 30 s or 5 %, whichever is sooner
  json,       // one object per line, at most one per second: t, phase, done, total, rate, eta_s
  none,
};
// "auto", "bar", "plain", "json", "none". Throws ConfigError.
ProgressStyle parse_progress(const std::string& word);

// Progress of one phase on stderr. A first line or bar appears at once; the last state is shown at
// finish() or at the end of life. A rate and the time left appear once 0.2 s of work are behind
// them; work that a first update within these 0.2 s reports does not count, because it began before
// the progress was shown.
class Progress {
 public:
  using Clock = std::function<double()>;  // seconds, ascending; tests bring their own

  // total: 0 when it is not known.
  Progress(std::ostream& err, ProgressStyle style, std::string phase, int64_t total,
           std::string unit, int width = 80, Clock clock = nullptr);
  Progress(Progress&& other) noexcept;
  ~Progress();

  // note: a few words behind the numbers, e.g. "loss 0.412".
  void update(int64_t done, const std::string& note = {});
  void finish();

 private:
  bool due(double now) const;
  void draw(double now, bool last);
  double rate(double now) const;
  std::string line(double now) const;

  std::ostream* err_;
  ProgressStyle style_;
  std::string phase_;
  int64_t total_;
  std::string unit_;
  int width_;
  Clock clock_;
  double begin_;
  bool updated_ = false;
  double work_begin_;        // what the rate is measured from
  int64_t work_before_ = 0;  // done by then
  double drawn_at_;
  int64_t drawn_done_ = 0;
  int64_t done_ = 0;
  std::string note_;
};

}  // namespace scgraft
