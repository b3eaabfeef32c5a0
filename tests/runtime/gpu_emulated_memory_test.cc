// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "runtime/arena.h"
#include "runtime/gpu/memory_emulated.h"
#include "runtime/tensor.h"
#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

using gpu::allocate;
using gpu::allocated;
using gpu::emulated_memory;
using gpu::release;

class GpuEmulatedMemory : public ::testing::Test {
 protected:
  void TearDown() override {
    EXPECT_EQ(allocated(Device::cuda()), 0) << "something kept its memory";
    emulated_memory() = {};
  }
};

TEST_F(GpuEmulatedMemory, OutOfMemorySaysWhatWasWantedWhatIsFreeAndWhatToDo) {
  emulated_memory().total = 21'400'000;
  Tensor first({5'000'000}, DType::u8, Device::cuda());
  try {
    Tensor second({5'000'000}, DType::f32, Device::cuda());
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(),
                 "out of memory on cuda:0: 20.0 MB more are needed, 16.4 MB of 21.4 MB are free");
    EXPECT_EQ(error.code(), "E-MEMORY");
    EXPECT_THAT(error.hint(), ::testing::HasSubstr("--device cpu"));
  }
  // Exactly what is free, and then not one byte.
  const Tensor rest({16'400'000}, DType::u8, Device::cuda());
  expect_error("1 bytes more are needed, 0 bytes of 21.4 MB are free",
               [] { Tensor({1}, DType::u8, Device::cuda()); });
  first = Tensor();
  EXPECT_EQ(allocated(Device::cuda()), 16'400'000);
}

TEST_F(GpuEmulatedMemory, AFullDeviceLeavesTheArenaUsable) {
  emulated_memory().total = 3 << 19;
  Arena arena(Device::cuda());
  Arena::Scope scope(arena);
  scope.take({1 << 20}, DType::u8);
  expect_error("out of memory on cuda:0", [&] { scope.take({1 << 20}, DType::u8); });
  EXPECT_FALSE(scope.take({1 << 10}, DType::u8).empty()) << "half a megabyte was free";
  EXPECT_EQ(allocated(Device::cuda(1)), 0);
}

TEST_F(GpuEmulatedMemory, CountsEachDeviceForItself) {
  const Tensor there({10}, DType::f32, Device::cuda(1));
  EXPECT_EQ(allocated(Device::cuda(0)), 0);
  EXPECT_EQ(allocated(Device::cuda(1)), 40);
  EXPECT_EQ(gpu::live_allocations(Device::cuda(1)), 1);
}

TEST_F(GpuEmulatedMemory, FreshMemoryIsNan) {
  auto* data = static_cast<float*>(allocate(Device::cuda(), 12));
  EXPECT_TRUE(std::isnan(data[0]) && std::isnan(data[2]));
  release(Device::cuda(), data);
}

TEST_F(GpuEmulatedMemory, WhatAnEarlierScopeLeftIsNan) {
  Arena arena(Device::cuda());
  {
    Arena::Scope scope(arena);
    const TensorView view = scope.take({100}, DType::f32);
    std::fill_n(view.as<float>(), 100, 1.0f);
  }
  for (double v : values_of(arena.take({100}, DType::f32))) ASSERT_TRUE(std::isnan(v));
}

TEST_F(GpuEmulatedMemory, RefusesMemoryThatIsNotWhatItIsCalled) {
  float host[4] = {};
  Tensor there({4}, DType::f32, Device::cuda());
  auto* inside = static_cast<std::byte*>(there.view().data());
  const auto copy = [&](Device to, void* destination, Device from, const void* source, int64_t n) {
    return [=] { gpu::copy(to, destination, from, source, n, nullptr); };
  };
  const Device cpu = Device::cpu(), cuda = Device::cuda();
  expect_error("the memory named as that of cuda:0 is not", copy(cuda, host, cpu, host, 16));
  expect_error("the memory named as that of cuda:1 is not",
               copy(Device::cuda(1), inside, cpu, host, 16));
  expect_error("the memory named as the host's belongs to a device",
               copy(cuda, inside, cpu, inside, 16));
  expect_error("16 bytes reach beyond an allocation on cuda:0",
               copy(cuda, inside + 4, cpu, host, 16));
  expect_error("the memory named as that of cuda:0 is not",
               [&] { gpu::fill_zero(cuda, host, 16, nullptr); });
  copy(cuda, inside + 4, cpu, host, 12)();
}

TEST_F(GpuEmulatedMemory, CountsReleasesOfForeignMemory) {
  int local = 0;
  release(Device::cuda(), &local);
  void* data = allocate(Device::cuda(), 8);
  release(Device::cuda(1), data);
  EXPECT_EQ(emulated_memory().foreign_releases, 2);
  release(Device::cuda(), data);
  release(Device::cuda(), data);
  EXPECT_EQ(emulated_memory().foreign_releases, 3);
}

#ifdef __SANITIZE_ADDRESS__
constexpr bool kAddressSanitizer = true;
#else
constexpr bool kAddressSanitizer = false;
#endif

void write(void* data, int64_t at) { static_cast<volatile char*>(data)[at] = 1; }

// The first byte behind a tensor, and what a scope has given back.
TEST_F(GpuEmulatedMemory, WritesBehindATensorAreSeen) {
  if (!kAddressSanitizer) GTEST_SKIP() << "this build has no address sanitizer";
  Tensor there({5}, DType::u8, Device::cuda());
  write(there.view().data(), 4);
  EXPECT_DEATH(write(there.view().data(), 5), "heap-buffer-overflow");
  Arena arena(Device::cuda());
  void* gone = nullptr;
  {
    Arena::Scope scope(arena);
    const TensorView first = scope.take({256}, DType::u8), second = scope.take({3}, DType::u8);
    write(first.data(), 255);
    EXPECT_DEATH(write(first.data(), 256), "use-after-poison");
    EXPECT_DEATH(write(second.data(), 3), "use-after-poison");
    gone = first.data();
  }
  EXPECT_DEATH(write(gone, 0), "use-after-poison");
}

}  // namespace
}  // namespace scgraft
