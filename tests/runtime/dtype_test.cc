// SPDX-License-Identifier: Apache-2.0
#include "runtime/dtype.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace scgraft {
namespace {

f16 half_of_bits(uint16_t bits) {
  f16 value;
  value.bits = bits;
  return value;
}

float float_of_bits(uint16_t bits) { return static_cast<float>(half_of_bits(bits)); }

// The value of a half by its definition: sign, exponent, mantissa.
double value_of_bits(uint16_t bits) {
  const int exponent = (bits >> 10) & 31;
  const int mantissa = bits & 1023;
  const double sign = (bits & 0x8000) != 0 ? -1 : 1;
  if (exponent == 31) return mantissa != 0 ? NAN : sign * INFINITY;
  return exponent == 0 ? sign * std::ldexp(mantissa, -24)
                       : sign * std::ldexp(1024 + mantissa, exponent - 25);
}

// The half nearest to x >= 0, ties to even, by search among all finite ones and the one that would
// follow the largest.
uint16_t nearest_half(double x) {
  uint16_t low = 0, high = 0x7c00;
  const auto value = [](uint16_t bits) { return bits == 0x7c00 ? 65536.0 : value_of_bits(bits); };
  if (x >= value(high)) return high;
  while (high - low > 1) {
    const auto middle = static_cast<uint16_t>((low + high) / 2);
    (value(middle) <= x ? low : high) = middle;
  }
  const double below = x - value(low), above = value(high) - x;
  if (below != above) return below < above ? low : high;
  return (low & 1) == 0 ? low : high;
}

TEST(F16, KnownValues) {
  EXPECT_EQ(float_of_bits(0x3c00), 1.0f);
  EXPECT_EQ(float_of_bits(0xc000), -2.0f);
  EXPECT_EQ(float_of_bits(0x0001), std::ldexp(1.0f, -24));
  EXPECT_EQ(f16(65504.0f).bits, 0x7bff);
  EXPECT_EQ(f16(65519.0f).bits, 0x7bff);
  EXPECT_EQ(f16(65520.0f).bits, 0x7c00);
  EXPECT_EQ(f16(-1e10f).bits, 0xfc00);
  EXPECT_EQ(f16(std::ldexp(1.0f, -25)).bits, 0);  // half way to the smallest, to even
  EXPECT_EQ(f16(std::ldexp(1.5f, -25)).bits, 1);
  EXPECT_EQ(f16(-0.0f).bits, 0x8000);
}

TEST(F16, EveryValueConvertsToF32AndBack) {
  for (uint32_t bits = 0; bits <= 0xffff; ++bits) {
    const float value = float_of_bits(static_cast<uint16_t>(bits));
    const double want = value_of_bits(static_cast<uint16_t>(bits));
    if (std::isnan(want)) {
      ASSERT_TRUE(std::isnan(value)) << bits;
      ASSERT_TRUE(std::isnan(static_cast<float>(f16(value)))) << bits;
      continue;
    }
    ASSERT_EQ(static_cast<double>(value), want) << bits;
    ASSERT_EQ(f16(value).bits, bits);
  }
}

TEST(F16, RoundsRandomBitsToNearestEven) {
  uint64_t state = 1;
  for (int i = 0; i < 2'000'000; ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    auto bits = static_cast<uint32_t>(state >> 32);
    // Every second one gets an exponent in the range of halves, where rounding has something to do.
    if (i % 2 == 1) bits = (bits & 0x807fffffu) | (100u + (bits >> 24) % 48u) << 23;
    // And every third of those lies half way between two of them.
    if (i % 6 == 1) bits = (bits & ~0x1fffu) | 0x1000u;
    const auto value = std::bit_cast<float>(bits);
    const uint16_t got = f16(value).bits;
    if (std::isnan(value)) {
      ASSERT_TRUE(std::isnan(float_of_bits(got))) << bits;
      continue;
    }
    const uint16_t sign = (bits >> 31) != 0 ? 0x8000 : 0;
    ASSERT_EQ(got, sign | nearest_half(std::abs(static_cast<double>(value)))) << bits;
  }
}

TEST(Bf16, RoundsRandomBitsToNearestEven) {
  uint64_t state = 2;
  for (int i = 0; i < 2'000'000; ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    auto bits = static_cast<uint32_t>(state >> 32);
    if (i % 2 == 1) bits = (bits & ~0xffffu) | 0x8000u;
    const auto value = std::bit_cast<float>(bits);
    const uint16_t got = bf16(value).bits;
    if (std::isnan(value)) {
      ASSERT_TRUE(std::isnan(static_cast<float>(bf16(value)))) << bits;
      continue;
    }
    // The two neighbours and the distance to each; beyond the largest the upper one is infinity,
    // which counts as the next power of two.
    const auto low = static_cast<uint16_t>(bits >> 16);
    const uint32_t rest = bits & 0xffffu;
    const bool up = rest > 0x8000u || (rest == 0x8000u && (low & 1) != 0);
    ASSERT_EQ(got, static_cast<uint16_t>(low + (up ? 1 : 0))) << bits;
  }
}

}  // namespace
}  // namespace scgraft
