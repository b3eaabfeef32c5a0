// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "app/inspect/inspect.h"
#include "app/logging.h"
#include "app/nearest.h"
#include "io/json.h"
#include "io/text.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

struct Events {
  int64_t count = 0;
  std::map<std::string, json> last;  // by split
  json best = nullptr;               // the event of the lowest validation loss
};

// A run that is still going may have half a line at the end.
Events read_events(const std::string& path) {
  Events events;
  std::ifstream file(path);
  int64_t number = 0;
  for (std::string line; std::getline(file, line);) {
    ++number;
    if (line.empty()) continue;
    if (file.eof()) break;
    const json event = parse_json(std::as_bytes(std::span(line)), cat(path, ":", number),
                                  FileKind::data, {.bytes = 1 << 20, .depth = 16});
    if (!event.is_object()) continue;
    ++events.count;
    const auto split = event.find("split");
    if (split == event.end() || !split->is_string()) continue;
    events.last[split->get<std::string>()] = event;
    const auto loss = event.find("loss");
    if (*split == "validation" && loss != event.end() && loss->is_number() &&
        (events.best.is_null() || *loss < events.best["loss"]))
      events.best = event;
  }
  return events;
}

std::string brief(const json& event) {
  std::string text;
  for (const char* name : {"epoch", "step", "loss", "accuracy", "macro_f1", "lr", "cells_per_s"})
    if (const auto value = event.find(name); value != event.end() && value->is_number())
      text += fmt::format("{}{} {:.5g}", text.empty() ? "" : ", ", name, value->get<double>());
  return text;
}

}  // namespace

RunSummary summary_of_run(const std::string& folder) {
  const fs::path metrics = fs::path(folder) / "metrics.jsonl";
  const Events events = fs::exists(metrics) ? read_events(metrics.string()) : Events();
  RunSummary summary{{{"events", events.count}, {"last", events.last}, {"best", events.best}}, {}};
  for (const auto& [split, event] : events.last)
    summary.text += fmt::format("  last {:<11}{}\n", escaped(split, 11), brief(event));
  if (!events.best.is_null())
    summary.text += fmt::format("  best {:<11}{}\n", "validation", brief(events.best));
  return summary;
}

void inspect_run(Session& session, const std::string& path) {
  const auto timer = session.time("io");
  std::vector<std::string> files;
  for (const fs::directory_entry& entry : fs::directory_iterator(path))
    files.push_back(entry.path().filename().string() + (entry.is_directory() ? "/" : ""));
  std::sort(files.begin(), files.end());
  const RunSummary summary = summary_of_run(path);
  json& result = session.result();
  result = summary.values;
  result["kind"] = "run";
  result["files"] = files;
  session.print(
      printable(cat(escaped(path), ": run, ", result["events"].get<int64_t>(), " events\n",
                    summary.text, fmt::format("  {:<16}{}\n", "files", joined(files)))));
}

}  // namespace scgraft
