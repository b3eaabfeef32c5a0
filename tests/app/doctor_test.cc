// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "app/doctor/checks.h"
#include "runtime/config.h"
#include "runtime/gpu/libraries.h"
#include "tests/app/program.h"
#include "tests/testing/op_test.h"
#include "tests/testing/sanitized.h"

namespace scgraft {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::Key;

std::map<std::string, std::string> health_of(const Outcome& run) {
  std::map<std::string, std::string> health;
  const nlohmann::json result = run.result();
  for (const nlohmann::json& check : result.at("checks"))
    health[check.at("check")] = check.at("health");
  return health;
}

TEST(Doctor, LooksAtEveryPartOfTheMachine) {
  const TemporaryFolder folder;
  const Outcome run = run_here({"doctor", "--folder", folder / "", "--device", "cpu", "--json"});
  ASSERT_EQ(run.code, 0) << run.err;
  const auto health = health_of(run);
  for (const char* part :
       {"program", "processor", "memory", "HDF5 filters", "locale", "open files"})
    EXPECT_THAT(health, Contains(Key(std::string(part))));
  EXPECT_EQ(health.at("program"), "OK");
  EXPECT_EQ(health.count("GPU driver"), kBuiltWithCuda ? 1U : 0U);
}

TEST(Doctor, PrintsALinePerCheck) {
  const TemporaryFolder folder;
  const Outcome run = run_here({"doctor", "--folder", folder / ""});
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_THAT(run.out, AllOf(HasSubstr("OK"), HasSubstr("processor"), HasSubstr("disk")));
}

TEST(Doctor, SaysWhyADeviceAskedForCannotBeUsed) {
  const Outcome run = run_here({"doctor", "--device", "cuda:97"});
  EXPECT_EQ(run.code, 13);
  EXPECT_THAT(run.out, AllOf(HasSubstr("FAIL"), HasSubstr("cuda:97")));
  EXPECT_THAT(run.err, AllOf(HasSubstr("cuda:97"), HasSubstr("--device cpu")));
}

TEST(Doctor, NamesTheVersionsOfLibrariesThatAreInstalled) {
  const std::string file = test_library();
  if (file.empty()) GTEST_SKIP() << "only with the emulated device";
  const Outcome run =
      run_program("doctor --device cpu",
                  cat("SCGRAFT_CUBLASLT=", file, " SCGRAFT_CUDNN=", file, " SCGRAFT_NCCL=", file));
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_THAT(run.out,
              AllOf(ContainsRegex("OK +cuBLASLt +13.1.0, .*libscgraft_test_library"),
                    ContainsRegex("OK +cuDNN +9.19.0"), ContainsRegex("OK +NCCL +2.28.9")));
}

TEST(Doctor, WarnsOfALibraryThatTheEnvironmentNamesAndThatIsNotThere) {
  if (!kBuiltWithCuda) GTEST_SKIP() << "a build without CUDA uses no such libraries";
  const Outcome run = run_program("doctor --device cpu --json", "SCGRAFT_NCCL=/none/libnccl.so");
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_EQ(health_of(run).at("NCCL"), "WARN");
  EXPECT_THAT(run.out, HasSubstr("/none/libnccl.so"));
}

TEST(Doctor, LibrariesAreOptional) {
  const Check missing = check_library({.name = "NCCL", .problem = "NCCL was not found: ..."});
  EXPECT_EQ(missing.health, Health::ok);
  EXPECT_EQ(missing.found, "not found (optional: own kernels are used)");
}

TEST(Doctor, FailsForAFolderThatIsNotThere) {
  const TemporaryFolder folder;
  const Outcome run = run_here({"doctor", "--folder", folder / "none", "--device", "cpu"});
  EXPECT_EQ(run.code, 12);
  EXPECT_THAT(run.out, HasSubstr("FAIL"));
}

TEST(Doctor, KnowsALocaleThatIsNotThere) {
  const Outcome run = run_program("doctor --device cpu --json", "LC_ALL=xx_XX.nothing");
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_EQ(health_of(run).at("locale"), "WARN");
}

TEST(Doctor, KnowsALimitedAddressSpace) {
  if (kSanitized) GTEST_SKIP() << "the sanitizer needs more address space than any limit gives";
  const Outcome run = run_program("doctor --device cpu --json", "ulimit -v 8000000;");
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_EQ(health_of(run).at("address space"), "WARN");
}

}  // namespace
}  // namespace scgraft
