// SPDX-License-Identifier: Apache-2.0
#include "training/precision.h"

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

TEST(LossScale, IsOneWhereGradientsDoNotVanish) {
  LossScale scale(DType::bf16);
  EXPECT_EQ(scale.value(), 1);
  EXPECT_FALSE(scale.lower());
  for (int i = 0; i < 5000; ++i) scale.step_made();
  EXPECT_EQ(scale.value(), 1);
}

TEST(LossScale, HalvesAfterAFaultAndDoublesAfterManyGoodSteps) {
  LossScale scale(DType::f16);
  const double first = scale.value();
  EXPECT_GT(first, 1);
  EXPECT_TRUE(scale.lower());
  EXPECT_EQ(scale.value(), first / 2);
  for (int i = 0; i < 1999; ++i) scale.step_made();
  EXPECT_EQ(scale.value(), first / 2);
  scale.step_made();
  EXPECT_EQ(scale.value(), first);
  int times = 0;
  while (scale.lower()) ++times;
  EXPECT_EQ(scale.value(), 1) << "a gradient that is not finite at scale 1 is an error";
  EXPECT_EQ(times, 16);
}

}  // namespace
}  // namespace scgraft
