// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "runtime/gpu/architectures.h"

namespace scgraft::gpu {
namespace {

constexpr const char* kRelease = "75-real,80,86-real,89-real,90a-real,120";

TEST(Architectures, MachineCodeRunsWithinItsMajorNumber) {
  EXPECT_TRUE(runs_on("80-real", 80));
  EXPECT_TRUE(runs_on("80-real", 86));
  EXPECT_FALSE(runs_on("86-real", 80));
  EXPECT_FALSE(runs_on("80-real", 90));
  EXPECT_FALSE(runs_on("80-real", 75));
}

TEST(Architectures, ASpecificOneRunsThereAlone) {
  EXPECT_TRUE(runs_on("90a-real", 90));
  EXPECT_FALSE(runs_on("90a-real", 100));
  EXPECT_FALSE(runs_on("90a", 100));
}

TEST(Architectures, TranslatedCodeRunsOnAllLaterOnes) {
  EXPECT_TRUE(runs_on("80-virtual", 120));
  EXPECT_TRUE(runs_on("80", 100));
  EXPECT_FALSE(runs_on("80", 75));
}

TEST(Architectures, AReleaseRunsOnEveryCardFromTuringOn) {
  for (const int capability : {75, 80, 86, 87, 89, 90, 100, 103, 120, 121})
    EXPECT_TRUE(runs_on(kRelease, capability)) << capability;
  for (const int capability : {50, 61, 70}) EXPECT_FALSE(runs_on(kRelease, capability));
}

TEST(Architectures, NothingRunsWithoutAny) {
  EXPECT_FALSE(runs_on("", 80));
  EXPECT_FALSE(runs_on(",", 80));
}

TEST(Architectures, AreNamedAsTheirNumbers) {
  EXPECT_EQ(readable_architectures(kRelease), "75 80 86 89 90a 120");
}

}  // namespace
}  // namespace scgraft::gpu
