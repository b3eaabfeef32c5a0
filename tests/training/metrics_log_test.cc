// SPDX-License-Identifier: Apache-2.0
#include "training/metrics_log.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <limits>
#include <locale>
#include <nlohmann/json.hpp>
#include <sstream>

#include "tests/io/expect_file_error.h"
#include "tests/io/files.h"
#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

using nlohmann::json;

// 100, 100.5, 101, ... instead of the time of day.
std::function<double()> clock_from_100() {
  return [t = 99.5]() mutable { return t += 0.5; };
}

std::vector<json> events_of(const std::string& path) {
  std::vector<json> events;
  std::istringstream lines(read_text(path));
  for (std::string line; std::getline(lines, line);) events.push_back(json::parse(line));
  return events;
}

// The table as rows of cells; no cell of these tests is quoted.
std::vector<std::vector<std::string>> table_of(const std::string& path) {
  std::vector<std::vector<std::string>> rows;
  std::istringstream lines(read_text(path));
  for (std::string line; std::getline(lines, line);) {
    rows.emplace_back();
    line += ',';
    for (size_t end; (end = line.find(',')) != std::string::npos; line.erase(0, end + 1))
      rows.back().push_back(line.substr(0, end));
  }
  return rows;
}

TEST(MetricsLog, EveryEventIsALineAtOnce) {
  TemporaryFolder folder;
  MetricsLog log(folder.path(), clock_from_100());
  EXPECT_EQ(read_text(folder / "metrics.jsonl"), "");
  log.add({.step = 1, .epoch = 0, .split = "train", .values = {{"loss", 0.1}, {"lr", 1e-4}}});
  const std::vector<json> events = events_of(folder / "metrics.jsonl");
  ASSERT_EQ(events.size(), 1u);
  json event = events[0];
  EXPECT_GT(event["peak_rss_bytes"].get<int64_t>(), 1 << 20);
  event.erase("peak_rss_bytes");
  EXPECT_EQ(event, json::parse(R"({"step": 1, "epoch": 0, "split": "train", "loss": 0.1,
                                   "lr": 1e-4, "t": 100})"));
  EXPECT_FALSE(std::filesystem::exists(folder / "metrics.csv"));
}

TEST(MetricsLog, ClosesWithATableOfAllEvents) {
  TemporaryFolder folder;
  MetricsLog log(folder.path(), clock_from_100());
  log.add({.step = 7, .epoch = 0, .split = "train", .values = {{"loss", 0.1}, {"lr", 0.25}}});
  log.add({.step = 7, .epoch = 1, .split = "validation", .values = {{"accuracy", 1.0 / 3}}});
  log.close();
  auto rows = table_of(folder / "metrics.csv");
  ASSERT_EQ(rows.size(), 3u);
  EXPECT_EQ(rows[0],
            (std::vector<std::string>{"t", "step", "epoch", "split", "loss", "lr", "grad_norm",
                                      "cells_per_s", "peak_rss_bytes", "accuracy"}));
  for (size_t r : {size_t{1}, size_t{2}}) rows[r][8] = "";
  EXPECT_EQ(rows[1],
            (std::vector<std::string>{"100.0", "7", "0", "train", "0.1", "0.25", "", "", "", ""}));
  EXPECT_EQ(rows[2], (std::vector<std::string>{"100.5", "7", "1", "validation", "", "", "", "", "",
                                               "0.3333333333333333"}));
}

TEST(MetricsLog, ValuesThatAreNotFiniteAreNamed) {
  constexpr double kInf = std::numeric_limits<double>::infinity();
  TemporaryFolder folder;
  MetricsLog log(folder.path(), clock_from_100());
  log.add({.values = {{"loss", std::nan("")}, {"grad_norm", kInf}, {"lr", -kInf}}});
  log.close();
  const json event = events_of(folder / "metrics.jsonl").at(0);
  EXPECT_TRUE(event["loss"].is_null());
  EXPECT_EQ(event["loss_nonfinite"], "nan");
  EXPECT_EQ(event["grad_norm_nonfinite"], "inf");
  EXPECT_EQ(event["lr_nonfinite"], "-inf");
  const auto rows = table_of(folder / "metrics.csv");
  EXPECT_EQ(rows[0].size(), 9u) << "no column for the words";
  EXPECT_EQ(rows[1][4], "nan");
  EXPECT_EQ(rows[1][5], "-inf");
  EXPECT_EQ(rows[1][6], "inf");
}

TEST(MetricsLog, TextIsQuotedWhereATableNeedsIt) {
  TemporaryFolder folder;
  MetricsLog log(folder.path(), clock_from_100());
  log.add({.split = "a \"b\", c\n"});
  log.close();
  EXPECT_EQ(events_of(folder / "metrics.jsonl").at(0)["split"], "a \"b\", c\n");
  EXPECT_THAT(read_text(folder / "metrics.csv"),
              ::testing::HasSubstr("100.0,0,0,\"a \"\"b\"\", c\n\","));
}

// Decimal commas and grouped thousands, as German programs print them.
class GermanNumbers : public std::numpunct<char> {
  char do_decimal_point() const override { return ','; }
  char do_thousands_sep() const override { return '.'; }
  std::string do_grouping() const override { return "\3"; }
};

TEST(MetricsLog, NumbersDoNotFollowTheLocale) {
  TemporaryFolder folder;
  const std::locale before =
      std::locale::global(std::locale(std::locale::classic(), new GermanNumbers));
  MetricsLog log(folder.path(), clock_from_100());
  log.add({.step = 1234567, .values = {{"loss", 0.5}, {"cells_per_s", 12345.5}}});
  log.close();
  std::locale::global(before);
  const auto rows = table_of(folder / "metrics.csv");
  EXPECT_EQ(rows[1][1], "1234567");
  EXPECT_EQ(rows[1][4], "0.5");
  EXPECT_EQ(rows[1][7], "12345.5");
}

TEST(MetricsLog, StartsAnewWithoutOldEvents) {
  TemporaryFolder folder;
  put(folder / "metrics.jsonl", "{\"step\": 1}\n");
  MetricsLog log(folder.path(), clock_from_100());
  log.close();
  EXPECT_EQ(read_text(folder / "metrics.jsonl"), "");
  EXPECT_EQ(table_of(folder / "metrics.csv").size(), 1u);
}

// Killed after step 3 in the middle of a line; the last state that was saved is that of step 2.
TEST(MetricsLog, ContinuesAfterTheStepThatWasSaved) {
  TemporaryFolder folder;
  {
    MetricsLog log(folder.path(), clock_from_100());
    for (int64_t step = 1; step <= 3; ++step) log.add({.step = step, .values = {{"loss", 1.0}}});
  }
  const std::string whole = read_text(folder / "metrics.jsonl");
  put(folder / "metrics.jsonl", whole + R"({"step": 4, "lo)");
  MetricsLog log = MetricsLog::continued(folder.path(), 2, clock_from_100());
  log.add({.step = 3, .values = {{"loss", 0.5}}});
  log.close();
  const std::vector<json> events = events_of(folder / "metrics.jsonl");
  ASSERT_EQ(events.size(), 3u);
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(events[i]["step"], i + 1);
  EXPECT_EQ(events[2]["loss"], 0.5);
  EXPECT_EQ(read_text(folder / "metrics.jsonl").substr(0, 40), whole.substr(0, 40));
  EXPECT_EQ(table_of(folder / "metrics.csv").size(), 4u);
}

TEST(MetricsLog, ContinuesWhereNothingIsYet) {
  TemporaryFolder folder;
  MetricsLog log = MetricsLog::continued(folder.path(), 2, clock_from_100());
  log.add({.step = 3});
  EXPECT_EQ(events_of(folder / "metrics.jsonl").size(), 1u);
}

TEST(MetricsLog, RefusesToContinueWhatIsNoLog) {
  TemporaryFolder folder;
  put(folder / "metrics.jsonl", "{\"step\": 1}\n{\"loss\": 1}\n");
  expect_file_error(ExitCode::data, "E-METRICS", "line 2 is no event",
                    [&] { MetricsLog::continued(folder.path(), 5); });
  put(folder / "metrics.jsonl", "{\"step\": 1}\nnonsense\n");
  expect_file_error(ExitCode::data, "E-JSON", "line 2",
                    [&] { MetricsLog::continued(folder.path(), 5); });
  EXPECT_EQ(read_text(folder / "metrics.jsonl"), "{\"step\": 1}\nnonsense\n");
}

TEST(MetricsLog, RefusesNamesThatMeanSomethingElse) {
  TemporaryFolder folder;
  MetricsLog log(folder.path());
  expect_error("cannot be called step", [&] { log.add({.values = {{"step", 1}}}); });
  expect_error("cannot be called loss_nonfinite", [&] {
    log.add({.values = {{"loss_nonfinite", 1}}});
  });
  EXPECT_EQ(read_text(folder / "metrics.jsonl"), "");
}

TEST(MetricsLog, KeepsTheTimeOfDay) { EXPECT_GT(unix_seconds(), 1.7e9); }

}  // namespace
}  // namespace scgraft
