// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

namespace scgraft {

// Pieces of one row, on one thread, f32. `lanes` are the 16 random bits of each feature, null when
// nothing is dropped; what they keep is multiplied by `scale`.
struct ReluDropoutSimd {
  // y = drop(max(x, 0)), NaN stays NaN; bit i of `bits`, unless null, says y[i] > 0. The bits
  // behind the last feature of the last byte become 0.
  void (*forward)(const float* x, const uint16_t* lanes, uint32_t threshold, float scale, int64_t n,
                  float* y, uint8_t* bits);
  // dx = scale * dy where the bit is set, else 0.
  void (*backward)(const float* dy, const uint8_t* bits, float scale, int64_t n, float* dx);
};

namespace v3 {
extern const ReluDropoutSimd relu_dropout_simd;
}
namespace v4 {  // x86-64 only
extern const ReluDropoutSimd relu_dropout_simd;
}

}  // namespace scgraft
