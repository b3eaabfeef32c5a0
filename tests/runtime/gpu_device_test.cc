// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "runtime/arena.h"
#include "runtime/context.h"
#include "runtime/gpu/memory.h"
#include "runtime/parallel.h"
#include "runtime/stream.h"
#include "runtime/tensor.h"
#include "tests/testing/op_test.h"

// What every CUDA back end does, the emulated one and that of a GPU.
namespace scgraft {
namespace {

class GpuDevice : public ::testing::Test {
 protected:
  void SetUp() override {
    if (cuda_device_count() == 0) GTEST_SKIP() << "this machine has no CUDA device";
  }
};

Tensor counting(int64_t n) {
  Tensor t({n}, DType::f32);
  std::iota(t.as<float>(), t.as<float>() + n, 1.0f);
  return t;
}

TEST_F(GpuDevice, IsFoundByItsName) {
  EXPECT_EQ(Device::parse("cuda"), Device::cuda(0));
  EXPECT_EQ(Device::parse("cuda:0"), Device::cuda());
  EXPECT_EQ(Device::cuda().name(), "cuda:0");
  EXPECT_NE(Device::cuda(), Device::cpu());
  EXPECT_EQ(Device::parse("auto"), kCudaEmulated ? Device::cpu() : Device::cuda());
}

TEST_F(GpuDevice, ThatIsNotThereIsRefusedWithAWayOut) {
  try {
    Device::parse("cuda:99");
    FAIL() << "no error";
  } catch (const DeviceError& error) {
    EXPECT_THAT(error.what(), ::testing::StartsWith("device cuda:99 was asked for, but this "
                                                    "machine has "));
    EXPECT_EQ(error.code(), "E-DEVICE-NONE");
    EXPECT_EQ(error.hint(), "--device cpu");
  }
  for (const char* text : {"cuda:", "cuda:x", "cuda:0x", "cuda:-1", "cudas", "cuda:99999999999"})
    EXPECT_THROW(Device::parse(text), ConfigError) << text;
}

TEST_F(GpuDevice, TensorsStartAsZerosAndKeepTheirBytes) {
  const Tensor fresh({3, 5}, DType::f32, Device::cuda());
  EXPECT_EQ(fresh.device(), Device::cuda());
  EXPECT_EQ(values_of(fresh.view()), std::vector<double>(15, 0));
  for (int64_t n : {0, 1, 2, 3, 31, 33, 257, 100000}) {
    const Tensor host = counting(n);
    const Tensor there = host.to(Device::cuda());
    EXPECT_EQ(there.device(), Device::cuda());
    const Tensor other = there.clone();
    EXPECT_EQ(other.device(), Device::cuda());
    const Tensor back = other.to(Device::cpu());
    EXPECT_EQ(back.device(), Device::cpu());
    expect_same_bits(back.view(), host.view());
  }
}

TEST_F(GpuDevice, ConvertsTypes) {
  const Tensor half = counting(33).converted(DType::bf16).to(Device::cuda());
  const Tensor wide = half.converted(DType::f64);
  EXPECT_EQ(wide.device(), Device::cuda());
  EXPECT_EQ(values_of(wide.view()), values_of(counting(33).view()));
}

TEST_F(GpuDevice, CopiesPartsInTheOrderOfTheStream) {
  Context ctx(Device::cuda());
  const Tensor host = counting(100);
  Tensor there({100}, DType::f32, Device::cuda()), back({100}, DType::f32);
  copy(ctx, host.view().rows(0, 60), there.view().rows(40, 100));
  copy(ctx, there.view().rows(40, 100), there.view().rows(0, 60));
  copy(ctx, there.view(), back.view());
  ctx.synchronize();
  for (int64_t i = 0; i < 100; ++i)
    EXPECT_EQ(back.as<float>()[i], static_cast<float>(i < 60 ? i + 1 : i - 39));
}

TEST_F(GpuDevice, CopiesBetweenDevices) {
  if (cuda_device_count() < 2) GTEST_SKIP() << "this machine has one CUDA device";
  const Tensor first = counting(257).to(Device::cuda(0));
  const Tensor second = first.to(Device::cuda(1));
  EXPECT_EQ(second.device(), Device::cuda(1));
  expect_same_bits(second.view(), counting(257).view());
}

TEST_F(GpuDevice, CopyRefusesOtherShapesAndTypes) {
  Tensor there({4}, DType::f32, Device::cuda());
  const Tensor longer = counting(5), wide({4}, DType::f64);
  expect_error("copy: shapes differ, [5] and [4]", [&] { copy(longer.view(), there.view()); });
  expect_error("copy: types differ, f64 and f32", [&] { copy(wide.view(), there.view()); });
}

TEST_F(GpuDevice, SlicesAndSharesStayOnTheDevice) {
  const auto whole = std::make_shared<Buffer>(64, Device::cuda());
  Tensor part(Buffer::slice(whole, 16, 16), {4}, DType::f32);
  EXPECT_EQ(part.device(), Device::cuda());
  copy(counting(4).view(), part.view());
  const Tensor all(whole->share(), {16}, DType::f32);
  EXPECT_EQ(all.device(), Device::cuda());
  EXPECT_EQ(values_of(all.view().rows(4, 8)), (std::vector<double>{1, 2, 3, 4}));
}

// Others may use a GPU too, and its driver keeps pages back.
constexpr int64_t kSlack = kCudaEmulated ? 0 : int64_t{1} << 24;

TEST_F(GpuDevice, MemoryIsGivenBack) {
  const int64_t before = gpu::memory_info(Device::cuda()).free;
  {
    const Tensor big({1 << 24}, DType::f32, Device::cuda());
    EXPECT_LE(gpu::memory_info(Device::cuda()).free, before - (1 << 26) + kSlack);
  }
  EXPECT_GE(gpu::memory_info(Device::cuda()).free, before - kSlack);
}

// A step of a given size, in two scopes as layers and operations open them.
void step(Arena& arena, int64_t megabytes) {
  Arena::Scope outer(arena);
  for (int64_t i = 0; i < megabytes; ++i) {
    outer.take({1 << 17}, DType::f32);
    Arena::Scope inner(arena);
    inner.take({1 << 17}, DType::f32);
    inner.take({3}, DType::f64);
  }
}

TEST_F(GpuDevice, ArenaAllocatesNothingFromTheSecondStepOn) {
  Arena arena(Device::cuda());
  EXPECT_EQ(arena.allocations(), 0);
  step(arena, 9);
  EXPECT_GT(arena.allocations(), 1) << "the step was meant not to fit one chunk";
  EXPECT_EQ(arena.used(), 0);
  const int64_t peak = arena.peak();
  EXPECT_GE(peak, 9 * (1 << 19));
  step(arena, 9);  // joins the chunks
  const int64_t joined = arena.allocations();
  for (int i = 0; i < 3; ++i) step(arena, 9);
  step(arena, 2);
  EXPECT_EQ(arena.allocations(), joined);
  EXPECT_EQ(arena.peak(), peak);
}

TEST_F(GpuDevice, ArenaForgetsThePeakButNotWhatItNeeds) {
  Arena arena(Device::cuda());
  step(arena, 9);
  const int64_t peak = arena.peak();
  arena.reset_peak();
  step(arena, 2);  // joins the chunks
  EXPECT_LT(arena.peak(), peak);
  const int64_t joined = arena.allocations();
  step(arena, 9);
  EXPECT_EQ(arena.allocations(), joined);
}

TEST_F(GpuDevice, ArenaJoinsItsChunksIntoOneAsLargeAsThePeak) {
  const int64_t before = gpu::memory_info(Device::cuda()).free;
  Arena arena(Device::cuda());
  step(arena, 9);
  const int64_t chunks = arena.allocations();
  step(arena, 9);
  EXPECT_EQ(arena.allocations(), chunks + 1);
  if constexpr (kCudaEmulated) {
    EXPECT_EQ(before - gpu::memory_info(Device::cuda()).free, arena.peak());
  }
  arena.trim();
  EXPECT_GE(gpu::memory_info(Device::cuda()).free, before - kSlack);
}

TEST_F(GpuDevice, ArenaTakesAreAlignedDisjointAndOnTheDevice) {
  Arena arena(Device::cuda());
  Arena::Scope scope(arena);
  std::vector<std::pair<intptr_t, intptr_t>> ranges;
  for (int64_t n : {1, 0, 63, 64, 65, 1 << 20, 5, 1 << 21}) {
    const TensorView view = scope.take({n}, DType::f32);
    EXPECT_EQ(view.device(), Device::cuda());
    EXPECT_FALSE(view.empty());
    const auto begin = reinterpret_cast<intptr_t>(view.data());
    EXPECT_EQ(begin % 256, 0);
    for (const auto& [from, to] : ranges) EXPECT_TRUE(begin + 4 * n <= from || begin >= to);
    ranges.emplace_back(begin, begin + 4 * n);
  }
}

TEST_F(GpuDevice, ArenaObeysItsLimit) {
  Arena arena(Device::cuda(), 3 << 20);
  Arena::Scope scope(arena);
  scope.take({1 << 20}, DType::u8);
  scope.take({1 << 20}, DType::u8);
  expect_error("out of memory on cuda:0", [&] { scope.take({1 << 20, 2}, DType::u8); });
  const int64_t used = arena.used();
  scope.take({1 << 19}, DType::u8);
  EXPECT_GT(arena.used(), used);
  EXPECT_LE(arena.used(), 3 << 20);
}

TEST_F(GpuDevice, EventsAreWaitedForOnlyAfterTheyWereRecorded) {
  const Stream first(Device::cuda()), second(Device::cuda());
  Event event(Device::cuda());
  EXPECT_FALSE(event.recorded());
  expect_error("the event has not been recorded", [&] { second.wait(event); });
  expect_error("the event has not been recorded", [&] { event.synchronize(); });
  event.record(first);
  second.wait(event);
  event.synchronize();
  second.synchronize();
  Event later(Device::cuda());
  expect_error("the event has not been recorded", [&] { later.milliseconds_since(event); });
  later.record(second);
  later.synchronize();
  EXPECT_GE(later.milliseconds_since(event), 0);
  Event moved = std::move(later);
  EXPECT_TRUE(moved.recorded());
  EXPECT_FALSE(later.recorded());  // NOLINT(bugprone-use-after-move): what it promises
}

TEST_F(GpuDevice, EventsBelongToOneDevice) {
  expect_error("events are of CUDA devices", [] { Event event(Device::cpu()); });
  Event event(Device::cuda());
  const Stream host;
  expect_error("cannot be recorded in a stream of cpu", [&] { event.record(host); });
  host.synchronize();
  event.record(Stream(Device::cuda()));
  host.wait(event);
}

TEST_F(GpuDevice, ContextRefusesWhatRunsOnTheCpu) {
  expect_error("the definition of operations runs on the CPU, not on cuda:0",
               [] { Context ctx(Device::cuda(), {.reference = true}); });
  Context ctx(Device::cuda());
  const Tensor here({2}, DType::f32);
  expect_error("sum: a tensor is on cpu, the context runs on cuda:0",
               [&] { ctx.require_here("sum", here.view()); });
  const Tensor there({2}, DType::f32, Device::cuda());
  ctx.require_here("sum", there.view());
  expect_error("sum has no CUDA kernel", [&] { parallel_for(ctx, 0, [](int64_t) {}); });
  EXPECT_EQ(ctx.stream().device(), Device::cuda());
  EXPECT_EQ(ctx.scratch().take({1}, DType::f32).device(), Device::cuda());
}

}  // namespace
}  // namespace scgraft
