// SPDX-License-Identifier: Apache-2.0
// Whole runs of the program on a simulated study: train, annotate, eval, embed, and how they end.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>

#include <chrono>
#include <filesystem>
#include <thread>

#include "io/h5ad.h"
#include "tests/app/program.h"
#include "tests/testing/sanitized.h"

namespace scgraft {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

// A study, a model and an adapter, made once by the program itself.
class RunVerbsTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    shared_ = new TemporaryFolder;
    const std::string t = "1";
    ok({"simulate", "-o", in("study"), "--cells", "200", "--shifted-cells", "60", "--genes", "300",
        "--types", "4", "--signal", "2", "--depth", "500", "-t", t});
    ok({"pretrain", "--data", in("study/atlas.h5ad"), "--preset", "tiny", "-o", in("model"), "-t",
        t, "-s", "train.max_steps=3", "--max-genes", "60"});
    ok({"train", "--model", in("model"), "--data", in("study/atlas.h5ad"), "--label-key",
        "cell_type", "-o", in("run"), "-t", t, "-s", "train.max_steps=3", "-s", "adapter.r=2"});
  }
  static void TearDownTestSuite() { delete shared_; }

  static std::string in(const std::string& name) { return *shared_ / name; }
  static Outcome ok(std::vector<std::string> arguments) {
    arguments.emplace_back("--progress");
    arguments.emplace_back("none");
    const Outcome run = run_here(arguments);
    EXPECT_EQ(run.code, 0) << arguments[0] << ": " << run.err;
    return run;
  }
  std::vector<std::string> annotate(const std::string& output) const {
    return {
        "annotate", in("study/shifted.h5ad"), "--adapter", in("run/adapter"), "-o", output, "-t",
        "1"};
  }
  static std::vector<std::string> with(std::vector<std::string> arguments,
                                       const std::vector<std::string>& more) {
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }
  // Names in the test's own folder, hidden ones too.
  std::vector<std::string> left() const {
    std::vector<std::string> names;
    for (const fs::directory_entry& entry : fs::directory_iterator(folder_.path()))
      names.push_back(entry.path().filename().string());
    return names;
  }

  static TemporaryFolder* shared_;
  TemporaryFolder folder_;
};
TemporaryFolder* RunVerbsTest::shared_ = nullptr;

TEST_F(RunVerbsTest, AnnotateAndEval) {
  const std::string out = folder_ / "out.h5ad";
  const Outcome annotated = ok(with(annotate(out), {"--json", "--csv", folder_ / "out.csv"}));
  EXPECT_EQ(annotated.result()["key"], "run");
  EXPECT_EQ(annotated.result()["cells"], 60);
  EXPECT_EQ(annotated.json()["outputs"].size(), 2U);
  const H5ad file = H5ad::open(out);
  for (const char* column : {"run", "run_conf", "run_margin", "run_entropy", "run_status",
                             "run_second", "run_logreg", "run_knn", "cell_type"})
    EXPECT_TRUE(file.obs().has(column)) << column;
  const std::string csv = read_text(folder_ / "out.csv");
  EXPECT_EQ(std::count(csv.begin(), csv.end(), '\n'), 61);

  const Outcome scored =
      ok({"eval", out, "--key", "run", "--label-key", "cell_type", "--json", "-t", "1"});
  EXPECT_EQ(scored.result()["cells"], 60);
  EXPECT_EQ(scored.result()["scored"], "model");
  EXPECT_TRUE(scored.result()["nll"].is_number());
  EXPECT_TRUE(scored.result()["beside"].contains("logistic_regression"));
  EXPECT_TRUE(scored.result()["beside"].contains("knn"));
  const Outcome text = ok({"eval", out, "--key", "run", "--label-key", "cell_type"});
  EXPECT_THAT(text.out, HasSubstr("macro-F1"));
}

TEST_F(RunVerbsTest, EmbedAndTransferFromAReference) {
  const std::string a = folder_ / "a.h5ad", b = folder_ / "b.h5ad";
  ok({"embed", in("study/atlas.h5ad"), "--model", in("model"), "-o", a, "-t", "1"});
  const Outcome embedded =
      ok({"embed", in("study/shifted.h5ad"), "--model", in("model"), "-o", b, "-t", "1", "--json"});
  EXPECT_EQ(embedded.result()["dim"], 64);
  EXPECT_EQ(H5ad::open(b).obsm("X_scGPT").dim, 64);
  const Outcome scored = ok({"eval", b, "--label-key", "cell_type", "--obsm", "X_scGPT",
                             "--reference", a, "--json", "-t", "1"});
  EXPECT_EQ(scored.result()["scored"], "transfer");
  EXPECT_EQ(scored.result()["cells"], 60);
  ok({"embed", in("study/shifted.h5ad"), "--adapter", in("run/adapter"), "-o", folder_ / "c.h5ad",
      "-t", "1"});
}

TEST_F(RunVerbsTest, InspectShowsTheModelOfAPretraining) {
  const nlohmann::json found = ok({"inspect", in("model"), "--json"}).result();
  EXPECT_EQ(found["kind"], "checkpoint");
  EXPECT_EQ(found["model"], "scgpt");
  EXPECT_GT(found["parameters"], 10'000);
  EXPECT_EQ(found["run"]["events"], 3);
  EXPECT_TRUE(found["run"]["last"]["train"]["loss"].is_number());
  const std::string text = ok({"inspect", in("model")}).out;
  EXPECT_THAT(text, HasSubstr("parameters"));
  EXPECT_THAT(text, HasSubstr("last train"));
  EXPECT_LE(std::count(text.begin(), text.end(), '\n'), 12);

  const nlohmann::json run = ok({"inspect", in("run"), "--json"}).result();
  EXPECT_EQ(run["kind"], "run");
  EXPECT_TRUE(run["best"].is_object()) << "the epoch of the lowest validation loss";
}

TEST_F(RunVerbsTest, MistakesEndWithTheirCodeAndNothingWritten) {
  const std::string atlas = in("study/atlas.h5ad"), model = in("model");
  const auto refused = [&](int code, const char* name, const std::vector<std::string>& arguments) {
    const Outcome run = run_here(arguments);
    EXPECT_EQ(run.code, code) << run.err;
    EXPECT_THAT(run.err, HasSubstr(name));
  };
  refused(10, "E-NO-COLUMN",
          {"train", "--model", model, "--data", atlas, "--label-key", "nothing", "-o",
           folder_ / "run", "-t", "1"});
  EXPECT_FALSE(fs::exists(folder_ / "run/adapter"));
  EXPECT_FALSE(fs::exists(folder_ / "run/_SUCCESS.json"));
  fs::remove_all(folder_ / "run");

  refused(11, "E-ADAPTER",
          {"annotate", atlas, "--adapter", model, "-o", folder_ / "out.h5ad", "-t", "1"});
  refused(10, "E-NO-FILE",
          {"annotate", folder_ / "none.h5ad", "--adapter", in("run/adapter"), "-o",
           folder_ / "out.h5ad"});
  refused(
      2, "E-EXISTS",
      {"train", "--model", model, "--data", atlas, "--label-key", "cell_type", "-o", in("run")});
  refused(2, "E-OUTPUT", annotate("-"));
  refused(2, "E-OUTPUT", with(annotate(folder_ / "out.h5ad"), {"--csv", "-", "--json"}));
  EXPECT_TRUE(left().empty()) << ::testing::PrintToString(left());

  const std::string there = put(folder_ / "there.h5ad", "mine");
  refused(2, "E-EXISTS", annotate(there));
  EXPECT_EQ(read_text(there), "mine");
  EXPECT_EQ(left(), std::vector<std::string>{"there.h5ad"});
}

TEST_F(RunVerbsTest, ATableCanGoToStandardOutput) {
  const Outcome run = ok(with(annotate(folder_ / "out.h5ad"), {"--csv", "-"}));
  EXPECT_THAT(run.out, ::testing::StartsWith("cell,label,confidence,"));
  EXPECT_EQ(std::count(run.out.begin(), run.out.end(), '\n'), 61) << "the table and nothing else";
  EXPECT_EQ(left(), std::vector<std::string>{"out.h5ad"});
}

TEST_F(RunVerbsTest, FlagsAreOfferedWhereTheyAreRead) {
  const auto offers = [](const char* verb, const char* flag) {
    return run_here({verb, "--help"}).out.find(flag) != std::string::npos;
  };
  for (const char* verb : {"train", "pretrain"}) EXPECT_TRUE(offers(verb, "--batch-size")) << verb;
  for (const char* verb : {"annotate", "attribute", "embed", "eval", "simulate", "trace"})
    EXPECT_FALSE(offers(verb, "--batch-size")) << verb;
  for (const char* verb : {"annotate", "attribute", "embed", "train", "pretrain", "trace"})
    EXPECT_TRUE(offers(verb, "--precision")) << verb;
  for (const char* verb : {"eval", "simulate"}) EXPECT_FALSE(offers(verb, "--precision")) << verb;
}

class SignalTest : public RunVerbsTest, public ::testing::WithParamInterface<int> {};
INSTANTIATE_TEST_SUITE_P(Signals, SignalTest, ::testing::Values(SIGINT, SIGTERM));

TEST_P(SignalTest, EndsAnAnnotationWithNothingLeftBehind) {
  ok({"simulate", "-o", in("long"), "--cells", "20000", "--shifted-cells", "1", "--genes", "300",
      "-t", "1", "--force"});
  const std::string program = SCGRAFT_PROGRAM, query = in("long/atlas.h5ad"),
                    adapter = in("run/adapter"), output = folder_ / "out.h5ad";
  std::vector<std::string> arguments = {program, "annotate", query, "--adapter", adapter,
                                        "-o",    output,     "-t",  "1",         "-q"};
  std::vector<char*> raw;
  for (std::string& a : arguments) raw.push_back(a.data());
  raw.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0);
  pid_t child = 0;
  ASSERT_EQ(::posix_spawn(&child, program.c_str(), &actions, nullptr, raw.data(), environ), 0);
  posix_spawn_file_actions_destroy(&actions);
  // Once the hidden file is there, signals are caught.
  for (int i = 0; i < 1000 && left().empty(); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  ASSERT_FALSE(left().empty());
  const auto sent = std::chrono::steady_clock::now();
  ::kill(child, GetParam());
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - sent;
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 128 + GetParam());
  EXPECT_LT(took.count(), kSanitized ? 60 : 5) << "the whole annotation takes longer";
  EXPECT_TRUE(left().empty()) << ::testing::PrintToString(left());
}

}  // namespace
}  // namespace scgraft
