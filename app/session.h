// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <chrono>
#include <functional>
#include <iosfwd>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "app/common_flags.h"
#include "app/logging.h"
#include "app/progress.h"
#include "app/terminal.h"
#include "io/output.h"
#include "runtime/context.h"

namespace scgraft {

// One run of the program: what the flags say, where answers go, and what the final report needs. A
// verb writes its answer with print() for people and into result() for --json; both always, only
// one of them is shown.
class Session {
 public:
  Session(std::ostream& out, std::ostream& err, const Terminal& terminal);

  CommonFlags& flags() { return flags_; }
  const CommonFlags& flags() const { return flags_; }
  Overwrite overwrite() const { return flags_.force ? Overwrite::replace : Overwrite::refuse; }

  // What train.linear_backend of a configuration says; context() is not yet made.
  void use_linear_backend(const std::string& name);
  // Device and threads of the flags; made when first asked for, DeviceError when it cannot be.
  Context& context();
  // The device of context(); the CPU as long as nothing has asked for one.
  Device device() const { return context_ ? context_->device() : Device::cpu(); }
  // The flag's precision on the device of context(). Verbs with a configuration use product_dtype()
  // on the configured one.
  DType product_type();

  // The answer for people, on stdout; dropped with --json.
  void print(std::string_view text);
  // The answer for programs: a JSON object. NaN and infinities are allowed (app/report.h).
  nlohmann::json& result() { return result_; }
  const nlohmann::json& result() const { return result_; }

  // Names a finished output, file or folder: the report lists it with size and SHA-256.
  void add_output(const std::string& path) { outputs_.push_back(path); }
  const std::vector<std::string>& outputs() const { return outputs_; }

  // Adds the time until the timer's end to a named part of the report: "io", "compute", ...
  class Timer;
  [[nodiscard]] Timer time(const std::string& part);
  const std::map<std::string, double>& times() const { return times_; }
  double elapsed_s() const;

  // Progress on stderr as the flags want it.
  Progress progress(const std::string& phase, int64_t total, const std::string& unit = "cells");

  Log& log() { return log_; }
  const Log& log() const { return log_; }
  const Terminal& terminal() const { return terminal_; }
  bool colour() const;  // of stderr

  // The verb is chosen while arguments are read, and runs afterwards.
  void choose(std::string verb, std::function<void()> body);
  // Applies the flags once they are read.
  void start();
  void run_verb();
  const std::string& verb() const { return verb_; }
  // As typed, for the record; set by run_main().
  void set_command_line(const std::vector<std::string>& arguments);
  const std::string& command_line() const { return command_line_; }

  // For runs that end well but not with 0, e.g. stopped on purpose (75) or by a signal (128 + n).
  void set_exit_code(int code) { exit_code_ = code; }
  int exit_code() const { return exit_code_; }

 private:
  using Clock = std::chrono::steady_clock;

  std::ostream& out_;
  std::ostream& err_;
  Terminal terminal_;
  CommonFlags flags_;
  Log log_;
  LinearBackend linear_ = LinearBackend::own;
  std::optional<Context> context_;
  nlohmann::json result_ = nlohmann::json::object();
  std::vector<std::string> outputs_;
  std::map<std::string, double> times_;
  Clock::time_point begin_ = Clock::now();
  std::string verb_;
  std::string command_line_;
  std::function<void()> body_;
  int exit_code_ = 0;
};

class Session::Timer {
 public:
  Timer(Session& session, std::string part) : session_(session), part_(std::move(part)) {}
  ~Timer();
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;

 private:
  Session& session_;
  std::string part_;
  Clock::time_point begin_ = Clock::now();
};

}  // namespace scgraft
