// SPDX-License-Identifier: Apache-2.0
#include "kernels/relu_dropout_simd.h"

#include "kernels/simd.h"

namespace scgraft::SCGRAFT_SIMD_LEVEL {
namespace {

typedef uint16_t Lanes __attribute__((vector_size(2 * kLanes)));

// One vector: y, and its positive lanes as bits.
template <bool kDrop>
uint32_t forward_vector(const float* x, const uint16_t* lanes, uint32_t threshold, float scale,
                        float* y) {
  const VecF in = load(x);
  VecF out = in <= VecF{} ? VecF{} : in;  // not in > 0, so that NaN comes out as NaN
  if constexpr (kDrop) {
    Lanes random;
    __builtin_memcpy(&random, lanes, sizeof random);
    out = __builtin_convertvector(random, VecU) >= threshold ? out * scale : VecF{};
  }
  store(y, out);
  return bits_of(out > VecF{});
}

template <bool kDrop>
void forward_piece(const float* x, const uint16_t* lanes, uint32_t threshold, float scale,
                   int64_t n, float* y, uint8_t* bits) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const uint32_t positive =
        forward_vector<kDrop>(x + i, kDrop ? lanes + i : nullptr, threshold, scale, y + i);
    if (bits != nullptr) __builtin_memcpy(bits + i / 8, &positive, kLanes / 8);
  }
  if (i == n) return;
  float last_x[kLanes] = {};
  float last_y[kLanes];
  uint16_t last_lanes[kLanes] = {};
  for (int64_t k = i; k < n; ++k) {
    last_x[k - i] = x[k];
    if (kDrop) last_lanes[k - i] = lanes[k];
  }
  const uint32_t positive = forward_vector<kDrop>(last_x, last_lanes, threshold, scale, last_y);
  for (int64_t k = i; k < n; ++k) y[k] = last_y[k - i];
  for (int64_t b = i / 8; bits != nullptr && b < (n + 7) / 8; ++b)
    bits[b] = static_cast<uint8_t>(positive >> (8 * b - i));
}

void forward(const float* x, const uint16_t* lanes, uint32_t threshold, float scale, int64_t n,
             float* y, uint8_t* bits) {
  if (lanes == nullptr)
    forward_piece<false>(x, lanes, threshold, scale, n, y, bits);
  else
    forward_piece<true>(x, lanes, threshold, scale, n, y, bits);
}

void backward(const float* dy, const uint8_t* bits, float scale, int64_t n, float* dx) {
  VecI bit_of_lane;
  for (int lane = 0; lane < kLanes; ++lane) bit_of_lane[lane] = 1 << lane;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    uint32_t word = 0;
    __builtin_memcpy(&word, bits + i / 8, kLanes / 8);
    const VecI set = (bit_of_lane & static_cast<int32_t>(word)) != 0;
    store(dx + i, select(set, load(dy + i) * scale, VecF{}));
  }
  for (; i < n; ++i) dx[i] = (bits[i / 8] >> (i % 8) & 1) != 0 ? dy[i] * scale : 0.0f;
}

}  // namespace

const ReluDropoutSimd relu_dropout_simd = {forward, backward};

}  // namespace scgraft::SCGRAFT_SIMD_LEVEL
