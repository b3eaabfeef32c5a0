// SPDX-License-Identifier: Apache-2.0
#include "app/run_reporter.h"

#include <fmt/core.h>

#include "app/signals.h"
#include "runtime/log.h"
#include "training/metrics_log.h"

namespace scgraft {

struct RunReporter::Files {
  MetricsLog log;
};

RunReporter::RunReporter(Session& session, const std::string& folder) : session_(session) {
  if (!folder.empty()) files_ = std::make_unique<Files>(Files{MetricsLog(folder)});
  catch_stop_signals();
  events_.progress = [this](const char* phase, int64_t done, int64_t total) {
    progress(phase, done, total);
  };
  events_.step = [this](const StepReport& r) {
    note_ = fmt::format("loss {:.4f}", r.loss);
    progress("train", r.step, r.total_steps);
    if (files_)
      files_->log.add({.step = r.step,
                       .epoch = r.epoch,
                       .split = "train",
                       .values = {{"loss", r.loss},
                                  {"lr", r.learning_rate},
                                  {"grad_norm", r.gradient_norm},
                                  {"cells_per_s", static_cast<double>(r.cells) / r.seconds}}});
  };
  events_.epoch = [this](const EpochReport& r) {
    std::map<std::string, double> values = {{"loss", r.loss}};
    if (r.metrics != nullptr) {
      values["accuracy"] = r.metrics->accuracy;
      values["macro_f1"] = r.metrics->macro_f1;
      values["balanced_accuracy"] = r.metrics->balanced_accuracy;
      log_info("epoch ", r.epoch + 1, fmt::format(": validation loss {:.4f}, ", r.loss),
               fmt::format("accuracy {:.3f}, macro-F1 {:.3f}", r.metrics->accuracy,
                           r.metrics->macro_f1));
    }
    if (files_)
      files_->log.add(
          {.step = r.step, .epoch = r.epoch, .split = "validation", .values = std::move(values)});
  };
  events_.stop_requested = [] { return stop_signal() != 0; };
}

RunReporter::~RunReporter() = default;

void RunReporter::progress(const char* phase, int64_t done, int64_t total) {
  const bool steps = std::string_view(phase) == "train";
  if (phase_ != phase) {
    if (bar_) bar_->finish();
    bar_.emplace(session_.progress(phase, total, steps ? "steps" : "cells"));
    phase_ = phase;
  }
  bar_->update(done, steps ? note_ : std::string());
  if (total > 0 && done >= total) {
    bar_->finish();
    bar_.reset();
    phase_.clear();
  }
}

void RunReporter::finish() {
  if (bar_) bar_->finish();
  bar_.reset();
  if (files_) files_->log.close();
}

void set_exit_code_of(Session& session, const TrainerResult& training) {
  if (training.reason == StopReason::time_limit) {
    log_warning("W-STOPPED", "the time of --max-time is over after ", training.steps,
                " steps; what was learned so far is saved");
    session.set_exit_code(static_cast<int>(ExitCode::stopped));
  } else if (training.reason == StopReason::requested) {
    log_warning("W-STOPPED", "stopped by a signal after ", training.steps,
                " steps; what was learned so far is saved");
    session.set_exit_code(128 + stop_signal());
  }
}

}  // namespace scgraft
