// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

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
inline VecF splat(float x) { return x - VecF{}; }  // x - 0 folds for -0 too, 0 + x does not
inline VecF select(VecI mask, VecF yes, VecF no) { return mask ? yes : no; }
inline VecF vmax(VecF a, VecF b) { return a > b ? a : b; }

// Bit l of the result: lane l of a comparison.
inline uint32_t bits_of(VecI comparison) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask(reinterpret_cast<__m512i>(comparison));
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(comparison)));
#else
  uint32_t bits = 0;
  for (int lane = 0; lane < kLanes; ++lane) bits |= (comparison[lane] & 1u) << lane;
  return bits;
#endif
}

// The lanes moved down by half the vector, a quarter ... : the steps of a reduction tree.
#if defined(__AVX512F__)
inline VecF down8(VecF v) {
  return __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
}
inline VecF down4(VecF v) {
  return __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
}
inline VecF down2(VecF v) {
  return __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
}
inline VecF down1(VecF v) {
  return __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
}
#else
inline VecF down4(VecF v) { return __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3); }
inline VecF down2(VecF v) { return __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5); }
inline VecF down1(VecF v) { return __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6); }
#endif

// Sum and maximum of the lanes, in a fixed tree order.
inline float sum_of(VecF v) {
#if defined(__AVX512F__)
  v += down8(v);
#endif
  v += down4(v);
  v += down2(v);
  v += down1(v);
  return v[0];
}
inline float max_of(VecF v) {
#if defined(__AVX512F__)
  v = vmax(v, down8(v));
#endif
  v = vmax(v, down4(v));
  v = vmax(v, down2(v));
  v = vmax(v, down1(v));
  return v[0];
}

// 2^x for x <= 0 (relative error below 2e-7; exactly 1 at 0; 0 for x < -126). A little above 0,
// where rounding may put an x, it holds too. Source: Cody-Waite split into the integer part, put
// into the exponent, and a polynomial on [-0.5, 0.5] of least largest relative error.
inline VecF exp2_nonpositive(VecF x) {
#if defined(__AVX512F__)
  // The same bits as below in fewer instructions: scalef puts the integer into the exponent.
  const __mmask16 large =
      _mm512_cmp_ps_mask(reinterpret_cast<__m512>(x), _mm512_set1_ps(-126.0f), _CMP_NLT_UQ);
  const __m512 whole = _mm512_maskz_roundscale_ps(large, reinterpret_cast<__m512>(x), 0);
  const VecF f = x - reinterpret_cast<VecF>(whole);
#else
  const VecF clamped = vmax(splat(-126.0f), x);  // in this order NaN stays NaN
  const VecF magic = splat(12582912.0f);         // 1.5 * 2^23: adding it rounds to an integer
  const VecF shifted = clamped + magic;
  const VecF f = clamped - (shifted - magic);
#endif
  VecF p = splat(1.32647273e-3f);
  p = p * f + 9.67151299e-3f;
  p = p * f + 5.55073358e-2f;
  p = p * f + 2.40222424e-1f;
  p = p * f + 6.93147004e-1f;
  p = p * f + 1.0f;
#if defined(__AVX512F__)
  return reinterpret_cast<VecF>(_mm512_maskz_scalef_ps(large, reinterpret_cast<__m512>(p), whole));
#else
  VecU bits;
  __builtin_memcpy(&bits, &shifted, sizeof bits);
  VecU value;
  __builtin_memcpy(&value, &p, sizeof value);
  value += bits << 23;  // the low bits of `shifted` are the integer part
  VecF result;
  __builtin_memcpy(&result, &value, sizeof result);
  return x < -126.0f ? splat(0.0f) : result;
#endif
}

// erf(x), error below 1.2e-7; NaN stays NaN. Up to 0.93 a polynomial in x^2 times x, above it
// 1 - exp(a polynomial). Source: N. Juffa's coefficients of least largest error for f32.
inline VecF erf(VecF x) {
  const VecF s = x * x;
  VecF low = splat(-5.96761703e-4f);
  low = low * s + 4.99119423e-3f;
  low = low * s - 2.67681349e-2f;
  low = low * s + 1.12819925e-1f;
  low = low * s - 3.76125336e-1f;
  low = low * s + 1.28379166e-1f;
  low = low * x + x;
  const VecF size = x < 0.0f ? -x : x;
  const VecF t = size > 4.0f ? splat(4.0f) : size;  // from there on erf is 1 in f32
  const VecF t2 = t * t;
  VecF p = -1.72853470e-5f * t + 3.83197126e-4f;
  p = p * t2 + (-3.88396438e-3f * t + 2.42546219e-2f);
  p = p * t - 1.06777877e-1f;
  p = p * t - 6.34846687e-1f;
  p = p * t - 1.28717512e-1f;
  p = p * t - t;
  const VecF high = 1.0f - exp2_nonpositive(1.44269504088896341f * p);
  return size > 0.927734375f ? (x < 0.0f ? -high : high) : low;
}

}  // namespace scgraft::SCGRAFT_SIMD_LEVEL
