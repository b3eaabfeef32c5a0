// SPDX-License-Identifier: Apache-2.0
#include "training/schedule.h"

#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

// 10 steps of which 4 warm up: 1/5, 2/5, 3/5, 4/5 of the peak, the peak at step 4, then 6 steps of
// decay with q = 0, 1/6, ... 5/6.
ScheduleOptions warm(ScheduleKind kind) {
  return {.kind = kind, .learning_rate = 2.0, .warmup_ratio = 0.4};
}

TEST(ScheduleTest, WarmUpRisesToThePeakAndIsNeverZero) {
  for (const auto kind : {ScheduleKind::constant, ScheduleKind::linear, ScheduleKind::cosine}) {
    const Schedule s(warm(kind), 10);
    EXPECT_EQ(s.warmup_steps(), 4);
    for (int64_t t = 0; t <= 4; ++t) EXPECT_DOUBLE_EQ(s.at(t), 2.0 * (t + 1) / 5.0);
  }
}

TEST(ScheduleTest, KindsAfterWarmUpByHand) {
  EXPECT_DOUBLE_EQ(Schedule(warm(ScheduleKind::constant), 10).at(9), 2.0);
  const Schedule linear(warm(ScheduleKind::linear), 10);
  EXPECT_DOUBLE_EQ(linear.at(7), 1.0);
  EXPECT_NEAR(linear.at(9), 2.0 / 6, 1e-15);
  const Schedule cosine(warm(ScheduleKind::cosine), 10);
  EXPECT_NEAR(cosine.at(6), 1.5, 1e-15);  // cos(pi/3) = 1/2
  EXPECT_NEAR(cosine.at(7), 1.0, 1e-15);
  EXPECT_NEAR(cosine.at(8), 0.5, 1e-15);
}

TEST(ScheduleTest, StepDecaysOncePerEpoch) {
  const Schedule s(
      {.kind = ScheduleKind::step, .learning_rate = 1.0, .gamma = 0.9, .steps_per_epoch = 3}, 9);
  EXPECT_DOUBLE_EQ(s.at(0), 1.0);
  EXPECT_DOUBLE_EQ(s.at(2), 1.0);
  EXPECT_DOUBLE_EQ(s.at(3), 0.9);
  EXPECT_DOUBLE_EQ(s.at(8), 0.81);
}

TEST(ScheduleTest, StepsBeyondTheEndKeepTheLastRate) {
  EXPECT_DOUBLE_EQ(Schedule(warm(ScheduleKind::linear), 10).at(25), 0.0);
  EXPECT_NEAR(Schedule(warm(ScheduleKind::cosine), 10).at(25), 0.0, 1e-15);
  const Schedule s({.kind = ScheduleKind::step, .learning_rate = 1, .steps_per_epoch = 3}, 9);
  EXPECT_DOUBLE_EQ(s.at(100), s.at(8));
}

TEST(ScheduleTest, WithoutWarmUpTheFirstStepHasThePeak) {
  const Schedule s({.kind = ScheduleKind::cosine, .learning_rate = 3}, 1);
  EXPECT_DOUBLE_EQ(s.at(0), 3.0);
}

TEST(ScheduleTest, WordsRoundTrip) {
  for (const auto kind :
       {ScheduleKind::constant, ScheduleKind::linear, ScheduleKind::cosine, ScheduleKind::step})
    EXPECT_EQ(parse_schedule(name_of(kind)), kind);
}

TEST(ScheduleTest, ErrorsSayWhatWasWanted) {
  expect_error("lr_scheduler must be constant, linear, cosine or step, got \"cosin\"",
               [] { parse_schedule("cosin"); });
  expect_error("learning_rate must be a number of at least 0, got -1",
               [] { Schedule({.learning_rate = -1}, 1); });
  expect_error("warmup_ratio must be at least 0 and below 1, got 1",
               [] { Schedule({.warmup_ratio = 1}, 1); });
  expect_error("a cosine schedule needs at least one step, got 0", [] { Schedule({}, 0); });
  expect_error("gamma of a step schedule must be above 0 and at most 1, got 0",
               [] { Schedule({.kind = ScheduleKind::step, .gamma = 0, .steps_per_epoch = 1}, 1); });
  expect_error("a step schedule needs the steps of an epoch, got 0",
               [] { Schedule({.kind = ScheduleKind::step}, 1); });
}

}  // namespace
}  // namespace scgraft
