// SPDX-License-Identifier: Apache-2.0
#include "training/metrics_log.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "io/file_error.h"
#include "io/json.h"
#include "io/mapped_file.h"
#include "io/output.h"
#include "runtime/cpu.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

using nlohmann::json;

// Columns of the table in front of all others, and names that an event's values may not take.
constexpr std::array kFirstColumns = {"t",  "step",      "epoch",       "split",         "loss",
                                      "lr", "grad_norm", "cells_per_s", "peak_rss_bytes"};
constexpr std::array kReserved = {"t", "step", "epoch", "split", "peak_rss_bytes"};
constexpr std::string_view kNonFinite = "_nonfinite";

std::string lines_path(const std::string& folder) { return folder + "/metrics.jsonl"; }

// The complete lines of a log.
std::vector<std::string_view> complete_lines(std::string_view text) {
  std::vector<std::string_view> lines;
  for (size_t end; (end = text.find('\n')) != std::string_view::npos;) {
    lines.push_back(text.substr(0, end));
    text.remove_prefix(end + 1);
  }
  return lines;
}

json parse_event(std::string_view line, const std::string& file, size_t number) {
  json event =
      parse_json(std::as_bytes(std::span(line)), cat(file, ", line ", number), FileKind::data);
  if (!event.is_object() || !event.contains("step") || !event["step"].is_number_integer())
    throw_file_error(FileKind::data, file,
                     cat("line ", number, " is no event: an object with a step was wanted"),
                     "E-METRICS", "start the run in another folder");
  return event;
}

std::string_view text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::string csv_text(const std::string& text) {
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string out(1, '"');
  for (const char c : text) out.append(c == '"' ? 2 : 1, c);
  out += '"';
  return out;
}

std::string cell(const json& event, const std::string& name) {
  const auto value = event.find(name);
  if (value == event.end()) return "";
  if (value->is_null()) {
    const auto word = event.find(name + std::string(kNonFinite));
    return word != event.end() && word->is_string() ? csv_text(word->get<std::string>()) : "";
  }
  return value->is_string() ? csv_text(value->get<std::string>()) : value->dump();
}

// The table of all events, columns of later names in alphabetical order.
std::string table_of(const std::vector<json>& events) {
  std::set<std::string> names;
  for (const json& event : events)
    for (const auto& [name, value] : event.items())
      if (!name.ends_with(kNonFinite)) names.insert(name);
  std::vector<std::string> columns(kFirstColumns.begin(), kFirstColumns.end());
  for (const std::string& name : names)
    if (std::find(columns.begin(), columns.end(), name) == columns.end()) columns.push_back(name);
  std::string table;
  const auto add_row = [&](const auto& text) {
    for (size_t c = 0; c < columns.size(); ++c) {
      if (c > 0) table += ',';
      table += text(columns[c]);
    }
    table += '\n';
  };
  add_row([](const std::string& name) { return csv_text(name); });
  for (const json& event : events)
    add_row([&](const std::string& name) { return cell(event, name); });
  return table;
}

}  // namespace

double unix_seconds() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return static_cast<double>(std::chrono::duration_cast<std::chrono::milliseconds>(now).count()) /
         1000;
}

MetricsLog::MetricsLog(std::string folder, std::function<double()> clock)
    : MetricsLog(std::move(folder), std::move(clock), "") {}

MetricsLog::MetricsLog(std::string folder, std::function<double()> clock, const std::string& kept)
    : folder_(std::move(folder)), clock_(std::move(clock)) {
  write_file(lines_path(folder_), kept, Overwrite::replace);
  lines_ = std::make_unique<AppendFile>(lines_path(folder_));
}

MetricsLog::MetricsLog(MetricsLog&&) noexcept = default;
MetricsLog::~MetricsLog() = default;

MetricsLog MetricsLog::continued(std::string folder, int64_t step, std::function<double()> clock) {
  const std::string path = lines_path(folder);
  std::string kept;
  if (std::filesystem::exists(path)) {
    const auto file = MappedFile::open(path, FileKind::data);
    size_t number = 0;
    for (const std::string_view line : complete_lines(text_of(file->bytes()))) {
      const json event = parse_event(line, path, ++number);
      if (event["step"].get<int64_t>() > step) continue;
      kept += line;
      kept += '\n';
    }
  }
  return MetricsLog(std::move(folder), std::move(clock), kept);
}

void MetricsLog::add(const MetricsEvent& event) {
  json object = {{"step", event.step}, {"epoch", event.epoch}, {"split", event.split}};
  for (const auto& [name, value] : event.values) {
    require(std::find(kReserved.begin(), kReserved.end(), name) == kReserved.end() &&
                !name.ends_with(kNonFinite),
            "metrics log: a value cannot be called ", name);
    set_number(object, name, value);
  }
  object["peak_rss_bytes"] = peak_resident_bytes();
  set_number(object, "t", clock_());
  lines_->line(object.dump(-1, ' ', false, json::error_handler_t::replace));
}

void MetricsLog::close() {
  lines_->close();
  std::vector<json> events;
  const auto file = MappedFile::open(lines_path(folder_), FileKind::data);
  for (const std::string_view line : complete_lines(text_of(file->bytes())))
    events.push_back(parse_event(line, lines_path(folder_), events.size() + 1));
  write_file(folder_ + "/metrics.csv", table_of(events), Overwrite::replace);
}

}  // namespace scgraft
