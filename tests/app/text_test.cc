// SPDX-License-Identifier: Apache-2.0
// Small pieces that make up what the program prints.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <sstream>

#include "app/byte_count.h"
#include "app/duration.h"
#include "app/logging.h"
#include "app/nearest.h"
#include "app/progress.h"
#include "app/report.h"
#include "app/table.h"
#include "runtime/error.h"
#include "tests/io/files.h"

namespace scgraft {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(Nearest, FindsWhatWasMeant) {
  EXPECT_EQ(edit_distance("annotate", "anotate"), 1);
  EXPECT_EQ(edit_distance("trian", "train"), 1);
  EXPECT_EQ(edit_distance("learning-rate", "Learning_Rate"), 0);
  EXPECT_EQ(edit_distance("", "abc"), 3);
  EXPECT_EQ(nearest("anotate", {"train", "annotate"}), "annotate");
  EXPECT_EQ(nearest("x", {"q", "k"}), "");
  EXPECT_EQ(nearest("embed", {"train", "annotate"}), "");
}

TEST(Duration, ReadsAndWrites) {
  EXPECT_EQ(parse_duration("90"), 90);
  EXPECT_EQ(parse_duration("1.5h"), 5400);
  EXPECT_EQ(parse_duration("3h50m"), 13800);
  EXPECT_EQ(parse_duration("1d2h3m4s"), 93784);
  for (const char* bad : {"", "h", "1x", "1m1h", "1m30", "-1", "nan", "1e3", "1h 2m"})
    EXPECT_THROW(parse_duration(bad), ConfigError) << bad;
  EXPECT_EQ(duration_text(0.84), "0.8 s");
  EXPECT_EQ(duration_text(59.4), "59 s");
  EXPECT_EQ(duration_text(200), "3 min 20 s");
  EXPECT_EQ(duration_text(13800), "3 h 50 min");
}

TEST(Table, AlignsTextLeftAndNumbersRight) {
  Table table({"class", "cells"});
  table.add({"B cell", "95"});
  table.add({"\xce\xb3\xce\xb4 T", "1,234"});
  table.add({"x\x1b[2J", ""});
  EXPECT_EQ(table.text(),
            "class     cells\nB cell       95\n\xce\xb3\xce\xb4 T      1,234\nx\\x1b[2J\n");
  EXPECT_THROW(table.add({"one"}), ShapeError);
}

TEST(Printable, KeepsTextAndDefusesControlCharacters) {
  EXPECT_EQ(printable("a\nb \xce\xb3 \\x"), "a\nb \xce\xb3 \\x");
  EXPECT_EQ(printable("\x1b[31m\r\x07\x7f"), "\\x1b[31m\\x0d\\x07\\x7f");
  EXPECT_EQ(printable("\xc2\x9b"), "\\x9b");
}

TEST(Log, WarningsAreKeptAndShownFiveTimesEach) {
  std::ostringstream err;
  Log log(err);
  log.set_level(LogLevel::warning);
  for (int i = 0; i < 20; ++i) log.write(LogLevel::warning, "W-A", "many");
  log.write(LogLevel::warning, "W-B", "bell\x07");
  log.write(LogLevel::info, "", "quiet");
  EXPECT_EQ(log.warnings().size(), 21U);
  const std::string text = err.str();
  size_t lines = 0;
  for (size_t at = 0; (at = text.find("W-A", at)) != std::string::npos; ++at) ++lines;
  EXPECT_EQ(lines, 5U);
  EXPECT_THAT(text, HasSubstr("warning W-B: bell\\x07\n"));
  EXPECT_THAT(text, Not(HasSubstr("quiet")));
}

class ProgressTest : public ::testing::Test {
 protected:
  Progress make(ProgressStyle style, int64_t total) {
    return {err_, style, "train", total, "cells", 60, [this] { return now_; }};
  }
  int64_t count(char c) const {
    const std::string text = err_.str();
    return std::count(text.begin(), text.end(), c);
  }
  std::ostringstream err_;
  double now_ = 100;
};

TEST_F(ProgressTest, TheBarIsRedrawnAtMostTenTimesASecondOnOneLine) {
  {
    Progress progress = make(ProgressStyle::bar, 10'000);
    for (int i = 1; i <= 10'000; ++i) {
      now_ += 0.0002;  // two seconds in all
      progress.update(i, "loss 0.5");
    }
  }
  EXPECT_LE(count('\r'), 22);
  EXPECT_GE(count('\r'), 15);
  EXPECT_EQ(count('\n'), 1);
  EXPECT_THAT(err_.str(), HasSubstr("10000/10000 cells (100 %)"));
  std::istringstream parts(err_.str());
  for (std::string part; std::getline(parts, part, '\r');) EXPECT_LE(part.size(), 60U + 4);
}

TEST_F(ProgressTest, PlainLinesComeEveryFivePercentOrThirtySeconds) {
  {
    Progress progress = make(ProgressStyle::plain, 1'000);
    EXPECT_EQ(count('\n'), 1) << "the first line comes at once";
    for (int i = 1; i <= 1'000; ++i) {
      now_ += 0.01;
      progress.update(i);
    }
  }
  EXPECT_EQ(count('\n'), 21);
  EXPECT_EQ(count('\r'), 0);
  err_.str("");
  {
    Progress progress = make(ProgressStyle::plain, 0);
    for (int i = 1; i <= 100; ++i) {
      now_ += 1;
      progress.update(i);
    }
  }
  EXPECT_EQ(count('\n'), 1 + 3 + 1) << err_.str();
}

TEST_F(ProgressTest, JsonIsOneObjectPerLine) {
  {
    Progress progress = make(ProgressStyle::json, 100);
    now_ += 2;
    progress.update(50);
  }
  std::istringstream lines(err_.str());
  nlohmann::json last;
  for (std::string line; std::getline(lines, line);) last = nlohmann::json::parse(line);
  EXPECT_EQ(last["phase"], "train");
  EXPECT_EQ(last["done"], 50);
  EXPECT_EQ(last["total"], 100);
  EXPECT_EQ(last["rate"], 25.0);
  EXPECT_EQ(last["eta_s"], 2.0);
}

TEST_F(ProgressTest, ARateNeedsWorkThatWasSeen) {
  {
    // The progress begins when the first work is done already, and says nothing about its speed.
    Progress progress = make(ProgressStyle::json, 100);
    progress.update(50);
    now_ += 0.1;
    progress.update(51);
    now_ += 0.9;
    progress.update(60);
  }
  std::istringstream lines(err_.str());
  std::vector<nlohmann::json> events;
  for (std::string line; std::getline(lines, line);) events.push_back(nlohmann::json::parse(line));
  ASSERT_EQ(events.size(), 2U);
  EXPECT_TRUE(events[0]["rate"].is_null());
  EXPECT_TRUE(events[0]["eta_s"].is_null());
  EXPECT_EQ(events[1]["rate"], 10.0) << "10 in the second since the first update";
  EXPECT_EQ(events[1]["eta_s"], 4.0);
}

TEST_F(ProgressTest, NoRateIsShownBeforeAFifthOfASecond) {
  {
    Progress progress = make(ProgressStyle::plain, 100);
    now_ += 0.05;
    progress.update(10);
    now_ += 0.1;
    progress.update(90);
  }
  EXPECT_THAT(err_.str(), HasSubstr("90/100 cells (90 %)"));
  EXPECT_THAT(err_.str(), Not(HasSubstr("cells/s")));
  EXPECT_THAT(err_.str(), Not(HasSubstr("left")));
}

TEST_F(ProgressTest, NoneIsSilent) {
  { make(ProgressStyle::none, 10).update(5); }
  EXPECT_EQ(err_.str(), "");
}

TEST(Report, NumbersThatJsonHasNotBecomeNullWithAWord) {
  std::ostringstream stream;
  Session session(stream, stream, {});
  session.choose("eval", [] {});
  const double infinity = std::numeric_limits<double>::infinity();
  session.result() = {{"loss", std::nan("")}, {"inner", {{"low", -infinity}, {"f1", 0.5}}}};
  const nlohmann::json document = nlohmann::json::parse(success_document(session));
  EXPECT_EQ(document["schema"], "scgraft/eval/1");
  EXPECT_TRUE(document["result"]["loss"].is_null());
  EXPECT_EQ(document["result"]["loss_nonfinite"], "nan");
  EXPECT_EQ(document["result"]["inner"]["low_nonfinite"], "-inf");
  EXPECT_EQ(document["result"]["inner"]["f1"], 0.5);
  EXPECT_FALSE(document["result"]["inner"].contains("f1_nonfinite"));
}

TEST(Report, OutputsHaveSizeAndSha256) {
  const TemporaryFolder folder;
  std::ostringstream stream;
  Session session(stream, stream, {});
  session.add_output(put(folder / "a.txt", "abc"));
  const nlohmann::json outputs = nlohmann::json::parse(success_document(session))["outputs"];
  ASSERT_EQ(outputs.size(), 1U);
  EXPECT_EQ(outputs[0]["bytes"], 3);
  EXPECT_EQ(outputs[0]["sha256"],
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(Report, ErrorsNameWhereAndWhatToTry) {
  DataError error("no matching genes", "E-GENE-NONE");
  error.set_where("q.h5ad", "/var/_index");
  error.set_hint("--gene-key feature_name");
  EXPECT_EQ(error_text(error, false),
            "error E-GENE-NONE: no matching genes\n  in: q.h5ad\n  try: --gene-key feature_name\n");
  EXPECT_THAT(error_text(Error("broken"), false), HasSubstr("please report it"));
  EXPECT_THAT(error_text(Error("\x1b[2J"), false), Not(HasSubstr("\x1b")));
  const nlohmann::json document = nlohmann::json::parse(error_document(error));
  EXPECT_EQ(document["error"]["exit"], 10);
  EXPECT_EQ(document["error"]["where"]["path"], "/var/_index");
}

TEST(ByteCount, TakesANumberWithAUnit) {
  EXPECT_EQ(parse_bytes(""), 0);
  EXPECT_EQ(parse_bytes("500MB"), 500'000'000);
  EXPECT_EQ(parse_bytes("7.5GB"), 7'500'000'000);
  EXPECT_EQ(parse_bytes("2KiB"), 2048);
  for (const char* text : {"8", "GB", "-1GB", "0GB", "8 GB", "8gb", "1e300GB", "nanGB"})
    EXPECT_THROW(parse_bytes(text), ConfigError) << text;
}

}  // namespace
}  // namespace scgraft
