// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

// Vectors of floats for the `*_simd.cc` files, which are compiled once per CPU level; everything
// here lives in a namespace of that level (v3, v4). Include it from those files only, and put
// nothing else into them that a linker could share between levels.
#ifndef SCGRAFT_SIMD_LEVEL
#error "kernels/simd.h belongs to *_simd.cc files, which scgraft_add_op compiles per CPU level"
#endif

namespace scgraft::SCGRAFT_SIMD_LEVEL {

#if defined(__AVX512F__)
inline constexpr int kLanes = 16;
#else
inline constexpr int kLanes = 8;
#endif

// kLanes floats or 32-bit integers; + - * / compare and shift element by element.
typedef float VecF __attribute__((vector_size(4 * kLanes)));
typedef int32_t VecI __attribute__((vector_size(4 * kLanes)));
typedef uint32_t VecU __attribute__((vector_size(4 * kLanes)));

inline VecF load(const float* p) {
  VecF v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, VecF v) { __builtin_memcpy(p, &v, sizeof v); }
inline VecF splat(float x) { return VecF{} + x; }
inline VecF select(VecI mask, VecF yes, VecF no) { return mask ? yes : no; }
inline VecF vmax(VecF a, VecF b) { return a > b ? a : b; }

// Sum and maximum of the lanes, in a fixed tree order.
inline float sum_of(VecF v) {
  float lanes[kLanes];
  store(lanes, v);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}
inline float max_of(VecF v) {
  float lanes[kLanes];
  store(lanes, v);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i)
      lanes[i] = lanes[i] > lanes[i + width] ? lanes[i] : lanes[i + width];
  return lanes[0];
}

// 2^x for x <= 0 (relative error below 2e-7; 0 for x < -126). Source: Cody-Waite split into the
// integer part, put into the exponent, and a polynomial on [-0.5, 0.5].
inline VecF exp2_nonpositive(VecF x) {
  const VecF clamped = x < -126.0f ? splat(-126.0f) : x;
  const VecF magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const VecF shifted = clamped + magic;
  const VecF f = clamped - (shifted - magic);
  VecF p = splat(1.5403530393381608e-4f);
  p = p * f + 1.3333558146428443e-3f;
  p = p * f + 9.618129107628477e-3f;
  p = p * f + 5.550410866482158e-2f;
  p = p * f + 2.402265069591007e-1f;
  p = p * f + 6.931471805599453e-1f;
  p = p * f + 1.0f;
  VecI bits;
  __builtin_memcpy(&bits, &shifted, sizeof bits);
  VecI value;
  __builtin_memcpy(&value, &p, sizeof value);
  value += bits << 23;  // the low bits of `shifted` are the integer part
  VecF result;
  __builtin_memcpy(&result, &value, sizeof result);
  return x < -126.0f ? splat(0.0f) : result;
}

}  // namespace scgraft::SCGRAFT_SIMD_LEVEL
