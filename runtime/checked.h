// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <compare>
#include <concepts>
#include <cstdint>
#include <limits>

#include "runtime/error.h"

namespace scgraft {

// A non-negative 64-bit size whose arithmetic throws DataError instead of wrapping. Every size,
// count and offset that comes from a file passes through it before it is used.
//
//   Checked bytes = Checked(rows) * columns * 4 + header;   // throws on overflow
//   allocate(bytes.value());
class Checked {
 public:
  constexpr Checked() = default;
  template <std::integral T>
  constexpr Checked(T value) {  // NOLINT(google-explicit-constructor): sizes mix freely
    if constexpr (std::signed_integral<T>) {
      if (value < 0) fail("is negative");
    } else {
      if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
        fail("is larger than 2^63-1");
    }
    value_ = static_cast<int64_t>(value);
  }

  constexpr int64_t value() const { return value_; }

  friend constexpr Checked operator+(Checked a, Checked b) {
    Checked r;
    if (__builtin_add_overflow(a.value_, b.value_, &r.value_)) fail("overflows 64 bits");
    return r;
  }
  friend constexpr Checked operator*(Checked a, Checked b) {
    Checked r;
    if (__builtin_mul_overflow(a.value_, b.value_, &r.value_)) fail("overflows 64 bits");
    return r;
  }
  friend constexpr Checked operator-(Checked a, Checked b) {
    if (b.value_ > a.value_) fail("is negative");
    Checked r;
    r.value_ = a.value_ - b.value_;
    return r;
  }
  friend constexpr auto operator<=>(const Checked&, const Checked&) = default;

 private:
  [[noreturn]] static void fail(const char* what) {
    throw DataError(cat("a size in the file ", what), "E-SIZE");
  }
  int64_t value_ = 0;
};

}  // namespace scgraft
