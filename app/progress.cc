// SPDX-License-Identifier: Apache-2.0
#include "app/progress.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <ostream>
#include <utility>

#include "app/duration.h"
#include "app/logging.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

constexpr double kLeastSeconds = 0.2;  // of work, for a rate to mean anything

double steady_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Cuts at a character's border.
std::string cut(std::string text, int width) {
  auto bytes = static_cast<size_t>(std::max(width, 20));
  if (text.size() <= bytes) return text;
  while (bytes > 0 && (static_cast<unsigned char>(text[bytes]) & 0xc0) == 0x80) --bytes;
  return text.substr(0, bytes);
}

}  // namespace

ProgressStyle parse_progress(const std::string& word) {
  if (word == "auto") return ProgressStyle::automatic;
  if (word == "bar") return ProgressStyle::bar;
  if (word == "plain") return ProgressStyle::plain;
  if (word == "json") return ProgressStyle::json;
  if (word == "none") return ProgressStyle::none;
  throw ConfigError(cat("--progress must be auto, bar, plain, json or none, got \"", word, "\""));
}

Progress::Progress(std::ostream& err, ProgressStyle style, std::string phase, int64_t total,
                   std::string unit, int width, Clock clock)
    : err_(&err),
      style_(style),
      phase_(std::move(phase)),
      total_(total),
      unit_(std::move(unit)),
      width_(width),
      clock_(clock ? std::move(clock) : Clock(steady_seconds)),
      begin_(clock_()),
      work_begin_(begin_),
      drawn_at_(begin_) {
  if (style_ == ProgressStyle::automatic) style_ = ProgressStyle::plain;
  draw(begin_, false);
}

Progress::Progress(Progress&& other) noexcept
    : err_(std::exchange(other.err_, nullptr)),
      style_(other.style_),
      phase_(std::move(other.phase_)),
      total_(other.total_),
      unit_(std::move(other.unit_)),
      width_(other.width_),
      clock_(std::move(other.clock_)),
      begin_(other.begin_),
      updated_(other.updated_),
      work_begin_(other.work_begin_),
      work_before_(other.work_before_),
      drawn_at_(other.drawn_at_),
      drawn_done_(other.drawn_done_),
      done_(other.done_),
      note_(std::move(other.note_)) {}

Progress::~Progress() {
  try {
    finish();
  } catch (...) {  // a stream that cannot be written to must not end the program
  }
}

bool Progress::due(double now) const {
  const double since = now - drawn_at_;
  switch (style_) {
    case ProgressStyle::bar:
      return since >= 0.1;
    case ProgressStyle::json:
      return since >= 1;
    case ProgressStyle::plain:
      return since >= 30 || (total_ > 0 && (done_ - drawn_done_) * 20 >= total_);
    default:
      return false;
  }
}

void Progress::update(int64_t done, const std::string& note) {
  done_ = done;
  if (!note.empty()) note_ = note;
  const double now = clock_();
  if (!updated_ && now - begin_ < kLeastSeconds) {
    work_begin_ = now;
    work_before_ = done;
  }
  updated_ = true;
  if (due(now)) draw(now, false);
}

void Progress::finish() {
  if (err_ == nullptr) return;
  if (style_ == ProgressStyle::bar || done_ != drawn_done_) draw(clock_(), true);
  err_ = nullptr;
}

// Per second; 0: not known yet.
double Progress::rate(double now) const {
  const double seconds = now - work_begin_;
  return seconds < kLeastSeconds ? 0 : static_cast<double>(done_ - work_before_) / seconds;
}

std::string Progress::line(double now) const {
  const double per_second = rate(now);
  std::string text = phase_;
  if (total_ > 0)
    text += fmt::format("  {}/{} {} ({} %)", done_, total_, unit_, done_ * 100 / total_);
  else if (done_ > 0)
    text += fmt::format("  {} {}", done_, unit_);
  if (per_second > 0) {
    text += fmt::format("  {:.{}f} {}/s", per_second, per_second < 100 ? 1 : 0, unit_);
    if (total_ > done_)
      text += "  " + duration_text(static_cast<double>(total_ - done_) / per_second) + " left";
  }
  if (!note_.empty()) text += "  " + note_;
  return printable(text);
}

void Progress::draw(double now, bool last) {
  if (style_ == ProgressStyle::none) return;
  if (style_ == ProgressStyle::json) {
    using Json = nlohmann::ordered_json;
    const double per_second = rate(now);
    Json event = {{"t", now - begin_}, {"phase", phase_}, {"done", done_}};
    event["total"] = total_ > 0 ? Json(total_) : Json();
    event["rate"] = per_second > 0 ? Json(per_second) : Json();
    event["eta_s"] = total_ > 0 && per_second > 0
                         ? Json(static_cast<double>(total_ - done_) / per_second)
                         : Json();
    *err_ << event.dump() << "\n";
  } else if (style_ == ProgressStyle::bar) {
    *err_ << "\r" << cut(line(now), width_ - 1) << "\x1b[K" << (last ? "\n" : "");
  } else {
    *err_ << line(now) << "\n";
  }
  err_->flush();
  drawn_at_ = now;
  drawn_done_ = done_;
}

}  // namespace scgraft
