// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>

#include "app/session.h"
#include "app/verbs.h"
#include "tests/app/program.h"
#include "tests/testing/sanitized.h"

namespace scgraft {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::StartsWith;

struct Mistake {
  std::vector<std::string> arguments;
  std::string code;
  std::string says;
};

TEST(CommandLine, MistakesEndWithExitTwoAndTheNearestName) {
  const std::vector<Mistake> mistakes = {
      {{}, "E-VERB", "needs a verb"},
      {{"inspekt", "x"}, "E-VERB", "did you mean inspect?"},
      {{"qqqqq"}, "E-VERB", "it has inspect"},
      {{"inspekt", "--json-lines"}, "E-VERB", "did you mean inspect?"},
      {{"inspect", "--jsn", "x"}, "E-FLAG", "did you mean --json?"},
      {{"inspect", "--jsn=1", "x"}, "E-FLAG", "no flag --jsn;"},
      {{"inspect", "x", "--wholly-other"}, "E-FLAG", "no flag --wholly-other"},
      {{"trace", "--modle", "x"}, "E-FLAG", "did you mean --model?"},
      {{"inspect", "a", "b"}, "E-USAGE", "does not expect the argument \"b\""},
      {{"inspect"}, "E-USAGE", "FILE is required"},
      {{"config"}, "E-VERB", "scgraft config needs a verb: init, check"},
      {{"config", "chekc", "x"}, "E-VERB", "did you mean check?"},
      {{"version", "--color", "blue"}, "E-USAGE", "blue not in"},
      {{"trace", "--model", "m", "--inputs", "i", "-o", "o", "-t", "0"}, "E-USAGE", "--threads"},
      {{"inspect", "a\x1b[2Jb", "c\x1b[2J"}, "E-USAGE", "c\\x1b[2J"},
  };
  for (const Mistake& mistake : mistakes) {
    const Outcome run = run_here(mistake.arguments);
    EXPECT_EQ(run.code, 2) << run.err;
    EXPECT_THAT(run.out, IsEmpty());
    EXPECT_THAT(run.err, StartsWith("error " + mistake.code + ": "));
    EXPECT_THAT(run.err, HasSubstr(mistake.says));
    EXPECT_THAT(run.err, HasSubstr("\n  try: scgraft")) << "no way out is named";
    EXPECT_THAT(run.err, Not(HasSubstr("\x1b")));
  }
}

TEST(CommandLine, HelpOfEveryVerbStartsWithTwoExamplesToCopy) {
  std::ostringstream ignored;
  Session session(ignored, ignored, {});
  CLI::App root("", "scgraft");
  for (const VerbEntry& entry : verbs()) entry.add(root, session);
  ASSERT_THAT(root.get_subcommands({}), Not(IsEmpty()));
  for (const CLI::App* verb : root.get_subcommands({})) {
    std::vector<std::vector<std::string>> commands = {{verb->get_name()}};
    for (const CLI::App* inner : verb->get_subcommands({}))
      commands.push_back({verb->get_name(), inner->get_name()});
    for (std::vector<std::string> command : commands) {
      std::string line = "  scgraft";
      for (const std::string& word : command) line += " " + word;
      command.emplace_back("--help");
      const Outcome run = run_here(command);
      EXPECT_EQ(run.code, 0);
      EXPECT_THAT(run.err, IsEmpty());
      ASSERT_THAT(run.out, StartsWith("Examples:\n" + line.substr(0, line.find(' ', 10))));
      const std::string second = run.out.substr(run.out.find('\n', 10) + 1);
      EXPECT_THAT(second, StartsWith("  scgraft ")) << run.out;
      EXPECT_THAT(run.out, HasSubstr("Usage: scgraft " + command.front()));
    }
  }
}

TEST(CommandLine, HelpAndVersionGoToStandardOutput) {
  for (const char* flag : {"--help", "-h", "--version"}) {
    const Outcome run = run_program(flag);
    EXPECT_EQ(run.code, 0);
    EXPECT_THAT(run.out, HasSubstr("scgraft"));
    EXPECT_THAT(run.err, IsEmpty());
  }
}

TEST(CommandLine, HelpNeedsLessThanTwentyMilliseconds) {
  if (kSanitized) GTEST_SKIP() << "sanitizers take longer to start";
  double best = 1e9;
  for (int i = 0; i < 10; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    ASSERT_EQ(run_program("--help").code, 0);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    best = std::min(best, took.count());
  }
  EXPECT_LT(best, 0.02);
}

TEST(CommandLine, JsonIsOneDocumentOnStandardOutput) {
  const Outcome run = run_program("version --json");
  ASSERT_EQ(run.code, 0);
  EXPECT_EQ(run.out.back(), '\n');
  const nlohmann::json document = run.json();
  EXPECT_EQ(document["schema"], "scgraft/version/1");
  EXPECT_EQ(document["ok"], true);
  EXPECT_TRUE(document["result"].contains("git"));
  for (const char* library : {"HDF5", "yaml-cpp", "Eigen", "oneDNN"}) {
    EXPECT_TRUE(document["result"]["libraries"][library].contains("licence")) << library;
    EXPECT_THAT(document["result"]["libraries"][library]["version"].get<std::string>(),
                ::testing::MatchesRegex("[0-9]+[.][0-9]+[.][0-9]+"));
  }
  EXPECT_TRUE(document["warnings"].is_array());
  EXPECT_GT(document["timing_s"]["total"], 0);
  EXPECT_TRUE(document["outputs"].is_array());
}

TEST(CommandLine, JsonStandsForErrorsToo) {
  for (const std::string arguments :
       {"inspect --json /no/such/file", "inspect --jsn --json x", "inspekt --json"}) {
    const Outcome run = run_program(arguments);
    const nlohmann::json document = run.json();
    EXPECT_EQ(document["schema"], "scgraft/error/1");
    EXPECT_EQ(document["ok"], false);
    EXPECT_EQ(document["error"]["exit"], run.code);
    EXPECT_TRUE(document["error"]["where"].contains("file"));
    EXPECT_THAT(run.err, HasSubstr(document["error"]["code"].get<std::string>()));
  }
  const Outcome missing = run_program("inspect --json /no/such/file");
  EXPECT_EQ(missing.code, 10);
  EXPECT_EQ(missing.json()["error"]["where"]["file"], "/no/such/file");
}

TEST(CommandLine, AnAnswerThatCannotBeWrittenIsAStorageError) {
  const TemporaryFolder folder;
  const std::string command =
      std::string("'") + SCGRAFT_PROGRAM + "' version > /dev/full 2> '" + folder / "err" + "'";
  EXPECT_EQ(WEXITSTATUS(std::system(command.c_str())), 12);
  EXPECT_THAT(read_text(folder / "err"), StartsWith("error E-STORAGE"));
}

TEST(CommandLine, ThreadsFollowTheEnvironment) {
  const auto threads = [](const std::string& environment) {
    return run_program("version --json", environment).result()["cpu"]["threads"].get<int>();
  };
  EXPECT_EQ(threads("env -u SLURM_CPUS_PER_TASK OMP_NUM_THREADS=3"), 3);
  EXPECT_EQ(threads("env SLURM_CPUS_PER_TASK=5 OMP_NUM_THREADS=3"), 5);
}

TEST(CommandLine, ADeviceThatIsNotThereEndsWithThirteen) {
  const TemporaryFolder folder;
  const Outcome run =
      run_here({"simulate", "-o", folder / "s", "--device", "cuda", "--cells", "10"});
  EXPECT_EQ(run.code, 13);
  EXPECT_THAT(run.err, HasSubstr("try: --device cpu"));
}

TEST(CommandLine, ColourOnlyWhereItIsWanted) {
  const Terminal terminal{.out = true, .err = true};
  const Terminal plain{.out = true, .err = true, .plain = true};
  const std::vector<std::string> arguments = {"inspect", "/no/such/file"};
  EXPECT_THAT(run_here(arguments, terminal).err, HasSubstr("\x1b[31m"));
  EXPECT_THAT(run_here(arguments, plain).err, Not(HasSubstr("\x1b")));
  std::vector<std::string> never = arguments;
  never.insert(never.end(), {"--color", "never"});
  EXPECT_THAT(run_here(never, terminal).err, Not(HasSubstr("\x1b")));
}

}  // namespace
}  // namespace scgraft
