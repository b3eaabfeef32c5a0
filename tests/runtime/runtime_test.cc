// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>

#include "runtime/arena.h"
#include "runtime/checked.h"
#include "runtime/context.h"
#include "runtime/parallel.h"
#include "runtime/random.h"
#include "runtime/tensor.h"
#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

TEST(Checked, ThrowsInsteadOfWrapping) {
  EXPECT_EQ((Checked(3) * 4 + 5).value(), 17);
  EXPECT_THROW(Checked(int64_t{1} << 62) * 2, DataError);
  EXPECT_THROW(Checked(std::numeric_limits<int64_t>::max()) + 1, DataError);
  EXPECT_THROW(Checked(2) - 3, DataError);
  EXPECT_THROW(Checked(-1), DataError);
  EXPECT_THROW(Checked(std::numeric_limits<uint64_t>::max()), DataError);
}

// Known answers of the published implementation (Random123, kat_vectors, philox4x32 10).
TEST(Philox, MatchesKnownAnswers) {
  EXPECT_EQ(philox({0, 0, 0, 0}, {0, 0}),
            (PhiloxCounter{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u}));
  const uint32_t ones = 0xffffffffu;
  EXPECT_EQ(philox({ones, ones, ones, ones}, {ones, ones}),
            (PhiloxCounter{0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu}));
  EXPECT_EQ(
      philox({0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}, {0xa4093822u, 0x299f31d0u}),
      (PhiloxCounter{0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u}));
}

TEST(RandomStream, BelowStaysInRangeAndCoversIt) {
  RandomStream stream(7, RandomUse::shuffle);
  std::set<uint64_t> seen;
  for (int i = 0; i < 1000; ++i) {
    const uint64_t v = stream.below(5);
    ASSERT_LT(v, 5u);
    seen.insert(v);
  }
  EXPECT_EQ(seen.size(), 5u);
}

TEST(RandomStream, NormalHasUnitVariance) {
  RandomStream stream(7, RandomUse::initialise);
  double sum = 0, square = 0;
  constexpr int kDraws = 20000;
  for (int i = 0; i < kDraws; ++i) {
    const double v = stream.normal();
    sum += v;
    square += v * v;
  }
  EXPECT_NEAR(sum / kDraws, 0, 0.03);
  EXPECT_NEAR(square / kDraws, 1, 0.05);
}

TEST(Arena, ScopeGivesBackAndPeakRemembers) {
  Arena arena(Device::cpu(), 1 << 20);
  {
    Arena::Scope scope(arena);
    scope.take({100}, DType::f32);
    EXPECT_EQ(arena.used(), 448);  // padded to 64 bytes
  }
  EXPECT_EQ(arena.used(), 0);
  EXPECT_EQ(arena.peak(), 448);
  expect_error("f32 [1048576]: out of memory on cpu: 4.2 MB more are needed, 1.0 MB of 1.0 MB",
               [&] { arena.take({1 << 20}, DType::f32); });
}

TEST(Bf16, RoundsToNearestEven) {
  EXPECT_EQ(bf16(1.0f).bits, 0x3f80);
  EXPECT_EQ(static_cast<float>(bf16(1.00390625f)), 1.0f);       // half way, to even
  EXPECT_EQ(static_cast<float>(bf16(1.01171875f)), 1.015625f);  // half way, to even
  EXPECT_TRUE(std::isnan(static_cast<float>(bf16(NAN))));
}

TEST(TensorView, ChecksTypeAndRank) {
  Tensor t({2, 3}, DType::f32);
  EXPECT_EQ((t.as<float, 2>().dim(1)), 3);
  expect_error("expected f64 tensor, got f32", [&] { t.as<double, 2>(); });
  expect_error("rank 3, got shape [2, 3]", [&] { t.as<float, 3>(); });
  EXPECT_EQ(t.view().rows(1, 2).shape(), (Shape{1, 3}));
}

TEST(Parallel, RethrowsTheErrorOfABody) {
  Context ctx(Device::cpu(), {.threads = 2});
  expect_error("seven",
               [&] { parallel_for(ctx, 20, [](int64_t i) { require(i != 7, "seven"); }); });
}

TEST(Device, RefusesWhatThisBuildLacks) {
  if (!kBuiltWithCuda) {
    EXPECT_EQ(cuda_device_count(), 0);
    EXPECT_TRUE(Device::parse("auto").is_cpu());
    expect_error("without CUDA", [] { Device::parse("cuda:0"); });
    expect_error("without CUDA", [] { Device::cuda(); });
  }
  expect_error("got \"gpu\"", [] { Device::parse("gpu"); });
}

}  // namespace
}  // namespace scgraft
