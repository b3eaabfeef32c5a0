// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "runtime/context.h"
#include "runtime/gpu/host_waits.h"
#include "runtime/gpu/streams_emulated.h"
#include "runtime/stream.h"
#include "runtime/tensor.h"
#include "tests/testing/op_test.h"

// What the emulated device shows of copies that nobody waited for.
namespace scgraft {
namespace {

constexpr int64_t kN = 5;

class GpuEmulatedStreams : public ::testing::Test {
 protected:
  ~GpuEmulatedStreams() override { gpu::emulated_copy_time() = gpu::CopyTime::late; }

  Tensor pinned(float value) {
    Tensor t(Buffer::staging(kN * 4, Device::cuda()), {kN}, DType::f32);
    std::fill_n(t.as<float>(), kN, value);
    return t;
  }
  // What work of the stream finds in a tensor of the device.
  static double seen(const Stream& stream, const Tensor& there) {
    Tensor here({kN}, DType::f32);
    copy(stream, there.view(), here.view());
    stream.synchronize();
    return values_of(here.view())[kN - 1];
  }

  Stream work_{Device::cuda()}, copies_{Device::cuda()};
  Tensor there_{{kN}, DType::f32, Device::cuda()};
};

TEST_F(GpuEmulatedStreams, CopiesToTheDeviceAreThereForTheirOwnStream) {
  const Tensor from = pinned(3);
  copy(work_, from.view(), there_.view());
  EXPECT_EQ(seen(work_, there_), 3);
}

TEST_F(GpuEmulatedStreams, FindsAStreamThatDoesNotWaitForACopyOfAnother) {
  const Tensor from = pinned(3);
  copy(copies_, from.view(), there_.view());
  EXPECT_TRUE(std::isnan(seen(work_, there_)));
  copies_.synchronize();
  EXPECT_EQ(seen(work_, there_), 3);
}

TEST_F(GpuEmulatedStreams, AStreamThatWaitsForAnEventFindsTheCopiesBeforeItOnly) {
  const Tensor from = pinned(3), second = pinned(4);
  Event sent(Device::cuda());
  copy(copies_, from.view(), there_.view());
  sent.record(copies_);
  copy(copies_, second.view(), there_.view());
  work_.wait(sent);
  EXPECT_EQ(seen(work_, there_), 3);
}

TEST_F(GpuEmulatedStreams, FindsPinnedMemoryThatIsUsedAgainTooEarly) {
  Tensor from = pinned(3);
  Event sent(Device::cuda());
  for (const bool waits : {false, true}) {
    from.as<float>()[kN - 1] = 3;
    copy(copies_, from.view(), there_.view());
    sent.record(copies_);
    if (waits) sent.synchronize();
    from.as<float>()[kN - 1] = 4;
    work_.wait(sent);
    EXPECT_EQ(seen(work_, there_), waits ? 3 : 4);
  }
}

TEST_F(GpuEmulatedStreams, FindsAHostThatReadsACopyItDidNotWaitFor) {
  const Tensor from = pinned(3);
  Tensor back = pinned(7);
  copy(work_, from.view(), there_.view());
  copy(work_, std::as_const(there_).view(), back.view());
  Event behind(Device::cuda());
  behind.record(work_);
  EXPECT_TRUE(std::isnan(back.as<float>()[0]));
  seen(copies_, there_);  // to wait for another stream does not help
  EXPECT_TRUE(std::isnan(back.as<float>()[0]));
  behind.synchronize();
  EXPECT_EQ(back.as<float>()[0], 3);
}

// What the device does to the memory later is no part of the copy.
TEST_F(GpuEmulatedStreams, CopiesToTheHostAreOfTheirPlaceInTheStream) {
  const Tensor from = pinned(3), later = pinned(4);
  Tensor back = pinned(7);
  copy(work_, from.view(), there_.view());
  copy(work_, std::as_const(there_).view(), back.view());
  Event behind(Device::cuda());
  behind.record(work_);
  copy(work_, later.view(), there_.view());
  EXPECT_EQ(seen(work_, there_), 4);
  behind.synchronize();
  EXPECT_EQ(back.as<float>()[0], 3);
}

TEST_F(GpuEmulatedStreams, AWaitReachesThroughOtherStreams) {
  const Tensor from = pinned(3);
  Tensor back = pinned(7);
  Event first(Device::cuda()), second(Device::cuda());
  copy(copies_, from.view(), there_.view());
  copy(copies_, std::as_const(there_).view(), back.view());
  first.record(copies_);
  work_.wait(first);
  second.record(work_);
  second.synchronize();
  EXPECT_EQ(back.as<float>()[0], 3);
}

TEST_F(GpuEmulatedStreams, CopiesMayAlsoHappenAtOnce) {
  gpu::emulated_copy_time() = gpu::CopyTime::early;
  Tensor from = pinned(3), back = pinned(7);
  copy(copies_, from.view(), there_.view());
  from.as<float>()[0] = 4;
  copy(work_, std::as_const(there_).view(), back.view());
  EXPECT_EQ(back.as<float>()[0], 3);
}

TEST_F(GpuEmulatedStreams, CountsWaitsOfTheHost) {
  const Tensor from = pinned(3), pageable({kN}, DType::f32);
  Event event(Device::cuda());
  const auto waits = [before = gpu::host_waits()] {
    const gpu::HostWaits now = gpu::host_waits();
    return std::vector<int64_t>{now.streams - before.streams, now.events - before.events,
                                now.copies - before.copies};
  };
  copy(work_, from.view(), there_.view());
  event.record(work_);
  copies_.wait(event);
  EXPECT_EQ(waits(), (std::vector<int64_t>{0, 0, 0}));
  event.synchronize();
  EXPECT_EQ(waits(), (std::vector<int64_t>{0, 1, 0}));
  copy(work_, pageable.view(), there_.view());
  EXPECT_EQ(waits(), (std::vector<int64_t>{0, 1, 1}));
  work_.synchronize();
  EXPECT_EQ(waits(), (std::vector<int64_t>{1, 1, 1}));
}

TEST_F(GpuEmulatedStreams, MemoryIsNotGivenBackUnderACopy) {
  {
    Tensor there({kN}, DType::f32, Device::cuda());
    const Tensor from = pinned(3);
    Tensor back = pinned(7);
    copy(copies_, from.view(), there.view());
    copy(copies_, std::as_const(there).view(), back.view());
  }
  copies_.synchronize();
}

}  // namespace
}  // namespace scgraft
