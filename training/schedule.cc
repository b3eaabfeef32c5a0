// SPDX-License-Identifier: Apache-2.0
#include "training/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>

#include "runtime/error.h"

namespace scgraft {

ScheduleKind parse_schedule(std::string_view word) {
  for (const ScheduleKind kind :
       {ScheduleKind::constant, ScheduleKind::linear, ScheduleKind::cosine, ScheduleKind::step})
    if (word == name_of(kind)) return kind;
  ConfigError error(cat("lr_scheduler must be constant, linear, cosine or step, got \"",
                        std::string(word.substr(0, 40)), "\""),
                    "E-SCHEDULE");
  error.set_hint("cosine suits most runs");
  throw error;
}

std::string_view name_of(ScheduleKind kind) {
  switch (kind) {
    case ScheduleKind::constant:
      return "constant";
    case ScheduleKind::linear:
      return "linear";
    case ScheduleKind::cosine:
      return "cosine";
    case ScheduleKind::step:
      return "step";
  }
  return "unknown";
}

Schedule::Schedule(const ScheduleOptions& options, int64_t total_steps)
    : options_(options), total_steps_(total_steps) {
  require<ConfigError>(std::isfinite(options.learning_rate) && options.learning_rate >= 0,
                       "learning_rate must be a number of at least 0, got ", options.learning_rate,
                       ". Set it in the train section, e.g. 1.0e-4");
  require<ConfigError>(options.warmup_ratio >= 0 && options.warmup_ratio < 1,
                       "warmup_ratio must be at least 0 and below 1, got ", options.warmup_ratio,
                       ". 0.05 warms up over the first twentieth of the steps");
  require<ConfigError>(total_steps > 0 || options.kind == ScheduleKind::constant, "a ",
                       name_of(options.kind), " schedule needs at least one step, got ",
                       total_steps, ". Raise epochs or max_steps");
  if (options.kind == ScheduleKind::step) {
    require<ConfigError>(options.gamma > 0 && options.gamma <= 1,
                         "gamma of a step schedule must be above 0 and at most 1, got ",
                         options.gamma, ". 0.9 lowers the rate by a tenth after each epoch");
    require<ConfigError>(options.steps_per_epoch > 0,
                         "a step schedule needs the steps of an epoch,"
                         " got ",
                         options.steps_per_epoch, ". Give it training data");
  }
  warmup_steps_ = static_cast<int64_t>(
      std::ceil(options.warmup_ratio * static_cast<double>(std::max<int64_t>(total_steps, 0))));
}

double Schedule::at(int64_t step) const {
  const double peak = options_.learning_rate;
  if (step < warmup_steps_)
    return peak * static_cast<double>(step + 1) / static_cast<double>(warmup_steps_ + 1);
  if (options_.kind == ScheduleKind::constant) return peak;
  if (options_.kind == ScheduleKind::step) {
    const int64_t epoch = std::min(step, total_steps_ - 1) / options_.steps_per_epoch;
    return peak * std::pow(options_.gamma, static_cast<double>(epoch));
  }
  const double left = static_cast<double>(std::max<int64_t>(total_steps_ - warmup_steps_, 1));
  const double q = std::min(static_cast<double>(step - warmup_steps_) / left, 1.0);
  if (options_.kind == ScheduleKind::linear) return peak * (1 - q);
  return peak * 0.5 * (1 + std::cos(std::numbers::pi * q));
}

}  // namespace scgraft
