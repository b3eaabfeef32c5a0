// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <bit>
#include <cstdint>
#include <cstring>
#include <ostream>
#include <string_view>

#include "runtime/config.h"
#include "runtime/error.h"

namespace scgraft {

// Element types of tensors. Ops compute on f32 (storage f32 or bf16) and, as the definition that
// tests differentiate, f64; the others occur in files.
enum class DType : uint8_t { f32, bf16, f16, f64, i64, i32, i16, i8, u8, boolean };

// Bytes of one element.
constexpr int64_t size_of(DType t) {
  switch (t) {
    case DType::f64:
    case DType::i64:
      return 8;
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::bf16:
    case DType::f16:
    case DType::i16:
      return 2;
    default:
      return 1;
  }
}

std::string_view name_of(DType t);  // "f32", "bf16", ...
inline std::ostream& operator<<(std::ostream& out, DType t) { return out << name_of(t); }

// bfloat16: the upper half of an f32, rounded to nearest even.
struct bf16 {
  uint16_t bits = 0;
  bf16() = default;
  SCGRAFT_HD explicit bf16(float value) {
    uint32_t u;
    std::memcpy(&u, &value, 4);
    const bool nan = (u & 0x7fffffffu) > 0x7f800000u;
    bits = nan ? static_cast<uint16_t>((u >> 16) | 0x40u)
               : static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
  }
  SCGRAFT_HD explicit operator float() const {
    const uint32_t u = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &u, 4);
    return value;
  }
};

// IEEE half precision, rounded to nearest even; beyond the largest finite value it is infinite.
struct f16 {
  uint16_t bits = 0;
  f16() = default;
  SCGRAFT_HD explicit f16(float value) {
    uint32_t u;
    std::memcpy(&u, &value, 4);
    const uint32_t sign = (u >> 16) & 0x8000u;
    u &= 0x7fffffffu;
    uint32_t half;
    if (u > 0x7f800000u) {  // NaN, made quiet
      half = 0x7e00u | ((u >> 13) & 0x3ffu);
    } else if (u >= 0x477ff000u) {  // 65520 and more round to infinity
      half = 0x7c00u;
    } else if (u >= 0x38800000u) {  // 2^-14 and more: normal
      half = (u + 0xfffu + ((u >> 13) & 1u) - 0x38000000u) >> 13;
    } else if (u >= 0x33000000u) {  // 2^-25 and more: a multiple of 2^-24
      const uint32_t mantissa = (u & 0x7fffffu) | 0x800000u;
      const uint32_t shift = 126u - (u >> 23);
      const uint32_t tie = 1u << (shift - 1);
      const uint32_t rest = mantissa & (2 * tie - 1);
      half = mantissa >> shift;
      half += rest > tie || (rest == tie && (half & 1u)) ? 1u : 0u;
    } else {
      half = 0;
    }
    bits = static_cast<uint16_t>(sign | half);
  }
  SCGRAFT_HD explicit operator float() const {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
    const uint32_t magnitude = bits & 0x7fffu;
    if (magnitude < 0x400u) {  // subnormal
      const float value = static_cast<float>(magnitude) * 0x1p-24f;
      return sign != 0 ? -value : value;
    }
    uint32_t u = sign | ((magnitude << 13) + 0x38000000u);
    if (magnitude >= 0x7c00u) u = sign | 0x7f800000u | (magnitude & 0x3ffu) << 13;
    if (magnitude > 0x7c00u) u |= 0x400000u;  // NaN, made quiet
    float value;
    std::memcpy(&value, &u, 4);
    return value;
  }
};

template <class T>
struct DTypeOf;
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::f32;
};
template <>
struct DTypeOf<bf16> {
  static constexpr DType value = DType::bf16;
};
template <>
struct DTypeOf<f16> {
  static constexpr DType value = DType::f16;
};
template <>
struct DTypeOf<double> {
  static constexpr DType value = DType::f64;
};
template <>
struct DTypeOf<int64_t> {
  static constexpr DType value = DType::i64;
};
template <>
struct DTypeOf<int32_t> {
  static constexpr DType value = DType::i32;
};
template <>
struct DTypeOf<int16_t> {
  static constexpr DType value = DType::i16;
};
template <>
struct DTypeOf<int8_t> {
  static constexpr DType value = DType::i8;
};
template <>
struct DTypeOf<uint8_t> {
  static constexpr DType value = DType::u8;
};
template <>
struct DTypeOf<bool> {
  static constexpr DType value = DType::boolean;
};

// A type as a value, for typed lambdas: visit_real(t, [&]<class T>(Type<T>) { ... }).
template <class T>
struct Type {
  using type = T;
};

// Calls f with Type<float> or Type<double>.
template <class F>
decltype(auto) visit_real(DType t, F&& f) {
  if (t == DType::f32) return f(Type<float>{});
  if (t == DType::f64) return f(Type<double>{});
  throw TypeError(cat("this operation computes on f32 or f64, got ", t));
}

// Calls f with the C++ type of t.
template <class F>
decltype(auto) visit_any(DType t, F&& f) {
  switch (t) {
    case DType::f32:
      return f(Type<float>{});
    case DType::bf16:
      return f(Type<bf16>{});
    case DType::f16:
      return f(Type<f16>{});
    case DType::f64:
      return f(Type<double>{});
    case DType::i64:
      return f(Type<int64_t>{});
    case DType::i32:
      return f(Type<int32_t>{});
    case DType::i16:
      return f(Type<int16_t>{});
    case DType::i8:
      return f(Type<int8_t>{});
    case DType::u8:
      return f(Type<uint8_t>{});
    case DType::boolean:
      return f(Type<bool>{});
  }
  throw TypeError("unknown element type");
}

}  // namespace scgraft
