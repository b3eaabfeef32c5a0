// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <string_view>

namespace scgraft {

enum class ScheduleKind { constant, linear, cosine, step };

// "constant", "linear", "cosine", "step". Throws ConfigError naming the accepted words.
ScheduleKind parse_schedule(std::string_view word);
std::string_view name_of(ScheduleKind kind);

struct ScheduleOptions {
  ScheduleKind kind = ScheduleKind::cosine;
  double learning_rate = 1e-4;  // the peak
  double warmup_ratio = 0;      // share of all steps over which the rate rises
  double gamma = 0.9;           // step: factor after each epoch
  int64_t steps_per_epoch = 0;  // step: optimizer steps of one epoch
};

// Learning rate of an optimizer step, as a pure function of its number, so that a resumed run needs
// no saved schedule.
//
// With w = ceil(warmup_ratio * total_steps), t = step and q = (t - w) / (total_steps - w):
//   t < w     learning_rate * (t + 1) / (w + 1): never zero, and the peak is reached at t = w
//   constant  learning_rate
//   linear    learning_rate * (1 - q)
//   cosine    learning_rate * (1 + cos(pi q)) / 2
//   step      learning_rate * gamma^floor(t / steps_per_epoch)
class Schedule {
 public:
  // Throws ConfigError when a rate is negative or not finite, the warm-up ratio is outside [0, 1),
  // gamma is outside (0, 1], a kind that decays has no steps, or step has no epoch length.
  Schedule(const ScheduleOptions& options, int64_t total_steps);

  // step is 0-based. A step at or after total_steps gets the rate of the end of the schedule.
  double at(int64_t step) const;
  int64_t warmup_steps() const { return warmup_steps_; }

 private:
  ScheduleOptions options_;
  int64_t total_steps_;
  int64_t warmup_steps_;
};

}  // namespace scgraft
