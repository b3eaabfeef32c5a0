// SPDX-License-Identifier: Apache-2.0
#include "app/session.h"

#include <ostream>
#include <utility>

#include "app/byte_count.h"
#include "runtime/device.h"
#include "training/precision.h"

namespace scgraft {

Session::Session(std::ostream& out, std::ostream& err, const Terminal& terminal)
    : out_(out), err_(err), terminal_(terminal), log_(err) {}

void Session::use_linear_backend(const std::string& name) {
  linear_ = name == "cublaslt" ? LinearBackend::cublaslt : LinearBackend::own;
}

Context& Session::context() {
  if (!context_)
    context_.emplace(Device::parse(flags_.device),
                     ContextOptions{.threads = flags_.threads,
                                    .memory_limit = parse_bytes(flags_.memory_limit),
                                    .linear = linear_});
  return *context_;
}

DType Session::product_type() {
  return product_dtype(flags_.precision.value_or("auto"), context().device());
}

void Session::print(std::string_view text) {
  if (!flags_.json) out_ << text;
}

Session::Timer Session::time(const std::string& part) { return Timer(*this, part); }

Session::Timer::~Timer() {
  session_.times_[part_] += std::chrono::duration<double>(Clock::now() - begin_).count();
}

double Session::elapsed_s() const {
  return std::chrono::duration<double>(Clock::now() - begin_).count();
}

Progress Session::progress(const std::string& phase, int64_t total, const std::string& unit) {
  ProgressStyle style = parse_progress(flags_.progress);
  if (style == ProgressStyle::automatic)
    style = terminal_.err && !terminal_.plain ? ProgressStyle::bar : ProgressStyle::plain;
  if (flags_.quiet && flags_.progress == "auto") style = ProgressStyle::none;
  return Progress(err_, style, phase, total, unit, terminal_.width);
}

bool Session::colour() const {
  if (flags_.color != "auto") return flags_.color == "always";
  return terminal_.err && !terminal_.plain;
}

void Session::choose(std::string verb, std::function<void()> body) {
  verb_ = std::move(verb);
  body_ = std::move(body);
}

void Session::start() {
  log_.set_level(flags_.quiet ? LogLevel::warning
                              : (flags_.verbose > 0 ? LogLevel::debug : LogLevel::info));
  log_.set_colour(colour());
}

void Session::run_verb() { body_(); }

void Session::set_command_line(const std::vector<std::string>& arguments) {
  command_line_ = "scgraft";
  for (const std::string& argument : arguments) command_line_ += " " + argument;
}

}  // namespace scgraft
