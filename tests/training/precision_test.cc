// SPDX-License-Identifier: Apache-2.0
#include "training/precision.h"

#include <cmath>

#include "runtime/config.h"
#include "runtime/gpu/emulator.h"
#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

TEST(Precision, IsF32OnTheCpuUnlessBf16IsAskedFor) {
  const Device cpu = Device::cpu();
  EXPECT_EQ(product_dtype("auto", cpu), DType::f32);
  EXPECT_EQ(product_dtype("fp32", cpu), DType::f32);
  EXPECT_EQ(product_dtype("bf16", cpu), DType::bf16);
  expect_error("fp16 is for CUDA devices", [&] { product_dtype("fp16", cpu); });
  expect_error("got \"int8\"", [&] { product_dtype("int8", cpu); });
}

TEST(Precision, OnADeviceIsWhatItsTensorCoresKnow) {
  if constexpr (kCudaEmulated) {
    const Device cuda = Device::cuda();
    EXPECT_EQ(product_dtype("auto", cuda), DType::bf16);
    EXPECT_EQ(product_dtype("fp16", cuda), DType::f16);
    gpu::emulator_options().become(75);
    EXPECT_EQ(product_dtype("auto", cuda), DType::f16);
    expect_error("has no instructions for bf16", [&] { product_dtype("bf16", cuda); });
    gpu::emulator_options().become(gpu::EmulatorOptions().compute_capability);
  } else {
    GTEST_SKIP() << "only the emulated device can be of several kinds";
  }
}

// Steps with this norm (of the gradient times the factor) and this loss, one after the other.
void take_steps(UpdateState& state, const ScaleRule& rule, int count, double norm,
                bool finite_loss = true) {
  for (int i = 0; i < count; ++i) {
    decide(state, norm, finite_loss, rule);
    state.stopped = 0;
  }
}

TEST(LossScale, IsOneWhereGradientsDoNotVanish) {
  for (const DType type : {DType::f32, DType::bf16}) {
    const LossScale scale(type);
    UpdateState state{.scale = scale.initial};
    take_steps(state, scale.rule, 5000, 1);
    EXPECT_EQ(state.scale, 1);
    take_steps(state, scale.rule, 1, INFINITY);
    EXPECT_EQ(state.outcome, StepOutcome::not_finite);
    EXPECT_EQ(state.scale, 1);
  }
}

TEST(LossScale, HalvesAfterAFaultAndDoublesAfterManyGoodSteps) {
  const LossScale scale(DType::f16);
  UpdateState state{.scale = scale.initial};
  EXPECT_EQ(state.scale, 65536);
  take_steps(state, scale.rule, 2, INFINITY);
  EXPECT_EQ(state.outcome, StepOutcome::repeat);
  EXPECT_EQ(state.scale, 16384);
  take_steps(state, scale.rule, 1999, 1);
  EXPECT_EQ(state.scale, 16384);
  take_steps(state, scale.rule, 1, 1);
  EXPECT_EQ(state.scale, 32768);
  EXPECT_EQ(state.scale_used, 16384);
  EXPECT_EQ(state.steps_done, 2000);
  take_steps(state, scale.rule, 1999, 1);
  take_steps(state, scale.rule, 1, NAN);  // counting begins anew
  take_steps(state, scale.rule, 1999, 1);
  EXPECT_EQ(state.scale, 16384);
  take_steps(state, scale.rule, 2000 * 40, 1);
  EXPECT_EQ(state.scale, 0x1p24);
}

TEST(LossScale, EndsAtOneAndIsNotToBlameForALoss) {
  const LossScale scale(DType::f16);
  UpdateState state{.scale = scale.initial};
  take_steps(state, scale.rule, 1, 1, false);
  EXPECT_EQ(state.outcome, StepOutcome::not_finite);
  EXPECT_EQ(state.scale, 65536);
  take_steps(state, scale.rule, 16, INFINITY);
  EXPECT_EQ(state.scale, 1);
  EXPECT_EQ(state.outcome, StepOutcome::repeat);
  take_steps(state, scale.rule, 1, INFINITY);
  EXPECT_EQ(state.outcome, StepOutcome::not_finite);
}

}  // namespace
}  // namespace scgraft
