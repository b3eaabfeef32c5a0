// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "runtime/launch.cuh"
#include "runtime/tensor.h"
#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

__global__ void scale_kernel(const float* x, float factor, int64_t n, float* y) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < n) y[i] = factor * x[i];
}

class GpuLaunch : public ::testing::Test {
 protected:
  void SetUp() override {
    if (cuda_device_count() == 0) GTEST_SKIP() << "this machine has no CUDA device";
  }
};

TEST_F(GpuLaunch, RunsAKernelOnTensorsOfTheContext) {
  Context ctx(Device::cuda());
  for (int64_t n : {0, 1, 255, 256, 257, 1000}) {
    const Tensor x = tensor_of({n}, DType::f32, std::vector<double>(static_cast<size_t>(n), 1.5))
                         .to(Device::cuda());
    Tensor y({n}, DType::f32, Device::cuda());
    launch(ctx, "scale", scale_kernel, {.x = (n + 255) / 256}, 256, 0, x.as<float>(), 2.0f, n,
           y.as<float>());
    ctx.synchronize();
    EXPECT_EQ(values_of(y.view()), std::vector<double>(static_cast<size_t>(n), 3));
  }
}

TEST_F(GpuLaunch, ARefusedLaunchNamesTheOperation) {
  Context ctx(Device::cuda());
  Tensor y({1}, DType::f32, Device::cuda());
  expect_error("scale: ", [&] {
    launch(ctx, "scale", scale_kernel, {.x = 1}, 4096, 0, y.as<float>(), 2.0f, 1, y.as<float>());
  });
  // Nothing is left behind.
  launch(ctx, "scale", scale_kernel, {.x = 1}, 32, 0, y.as<float>(), 2.0f, 1, y.as<float>());
  ctx.synchronize();
}

}  // namespace
}  // namespace scgraft
