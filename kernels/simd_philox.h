// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "kernels/simd.h"
#include "kernels/simd_gemm.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

// Philox4x32-10 of runtime/random.h, kLanes counters at a time, for `*_simd.cc` files.
namespace scgraft::SCGRAFT_SIMD_LEVEL {

struct PhiloxLanes {
  VecU word[4];
};

// Upper halves of the 64-bit products a * m.
inline VecU multiply_high(VecU a, uint32_t m) {
#if defined(__AVX512F__)
  const auto x = reinterpret_cast<__m512i>(a);
  const __m512i y = _mm512_set1_epi32(static_cast<int>(m));
  // The forms with a full mask, since g++ 12 warns about an undefined value inside the others.
  const auto even = reinterpret_cast<VecU>(_mm512_maskz_mul_epu32(0xff, x, y));
  const auto odd =
      reinterpret_cast<VecU>(_mm512_maskz_mul_epu32(0xff, _mm512_maskz_srli_epi64(0xff, x, 32), y));
  return __builtin_shufflevector(even, odd, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15,
                                 31);
#elif defined(__AVX2__)
  const auto x = reinterpret_cast<__m256i>(a);
  const __m256i y = _mm256_set1_epi32(static_cast<int>(m));
  const auto even = reinterpret_cast<VecU>(_mm256_mul_epu32(x, y));
  const auto odd = reinterpret_cast<VecU>(_mm256_mul_epu32(_mm256_srli_epi64(x, 32), y));
  return __builtin_shufflevector(even, odd, 1, 9, 3, 11, 5, 13, 7, 15);
#else
  VecU high;
  for (int i = 0; i < kLanes; ++i)
    high[i] = static_cast<uint32_t>((uint64_t{a[i]} * uint64_t{m}) >> 32);
  return high;
#endif
}

inline PhiloxLanes philox(PhiloxLanes c, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const VecU a_high = multiply_high(c.word[0], 0xD2511F53u);
    const VecU b_high = multiply_high(c.word[2], 0xCD9E8D57u);
    const VecU a_low = c.word[0] * 0xD2511F53u;
    const VecU b_low = c.word[2] * 0xCD9E8D57u;
    c = {b_high ^ c.word[1] ^ key0, b_low, a_high ^ c.word[3] ^ key1, a_low};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return c;
}

// Stores lane after lane its four words: 16 bytes of random bits each, kLanes * 16 in all.
inline void store_blocks(PhiloxLanes c, uint8_t* to) {
  const VecU halves[4] = {
      interleave_low(c.word[0], c.word[2]), interleave_low(c.word[1], c.word[3]),
      interleave_high(c.word[0], c.word[2]), interleave_high(c.word[1], c.word[3])};
  for (int i = 0; i < 4; i += 2) {
    const VecU low = interleave_low(halves[i], halves[i + 1]);
    const VecU high = interleave_high(halves[i], halves[i + 1]);
    __builtin_memcpy(to, &low, sizeof low);
    __builtin_memcpy(to + sizeof low, &high, sizeof high);
    to += 2 * sizeof low;
  }
}

}  // namespace scgraft::SCGRAFT_SIMD_LEVEL
