// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#include "kernels/packing.h"
#include "runtime/context.h"
#include "runtime/random.h"

namespace scgraft {

// Inverted dropout whose mask is a function of logical coordinates, never stored: the backward pass
// computes it again, and packing, batching and tiling do not change it.
//
//   p     probability of zeroing an element; 0 switches dropout off
//   site  which dropout of the network this is: RandomUse::dropout + layer * 16 + slot
//
// Hidden dropout of x[token, feature] of a cell: one Philox call per 8 features,
//   counter = {site, cell id, position in the cell, feature / 8}, key = dropout_key(ctx.random()),
//   lane l = feature % 8 is the 16-bit half (l % 2, low half first) of word l / 2;
//   kept when lane >= round(p * 65536), then multiplied by 1 / (1 - round(p * 65536) / 65536).
// Attention dropout of the probability of (query i, key j) of head a: one call per 16 keys,
//   counter = {site + (head << 20), cell id, i, j / 16},
//   lane l = j % 16 is byte l % 4 (low byte first) of word l / 4;
//   kept when lane >= round(p * 256), scaled by 1 / (1 - round(p * 256) / 256).
struct Dropout {
  float p = 0;
  uint32_t site = 0;
  bool active() const { return p > 0; }
};

inline PhiloxKey dropout_key(const RandomState& state) {
  const auto low = static_cast<uint32_t>(state.seed);
  const auto high = static_cast<uint32_t>(state.seed >> 32);
  return {low ^ (high * 0x9E3779B9u), state.step};
}

// 16-bit threshold and scale of hidden dropout.
struct HiddenDropout {
  uint32_t threshold = 0;
  float scale = 1;
  explicit HiddenDropout(float p)
      : threshold(static_cast<uint32_t>(p * 65536.0f + 0.5f)),
        scale(65536.0f / (65536.0f - static_cast<float>(threshold))) {}
  // Keep flag of lane 0..7 of a Philox block.
  bool keeps(const PhiloxCounter& block, int lane) const {
    return ((block[static_cast<size_t>(lane / 2)] >> (16 * (lane % 2))) & 0xffffu) >= threshold;
  }
};

// 8-bit threshold and scale of attention dropout.
struct AttentionDropout {
  uint32_t threshold = 0;
  float scale = 1;
  explicit AttentionDropout(float p)
      : threshold(static_cast<uint32_t>(p * 256.0f + 0.5f)),
        scale(256.0f / (256.0f - static_cast<float>(threshold))) {}
  // Keep flag of lane 0..15 of a Philox block.
  bool keeps(const PhiloxCounter& block, int lane) const {
    return ((block[static_cast<size_t>(lane / 4)] >> (8 * (lane % 4))) & 0xffu) >= threshold;
  }
};

}  // namespace scgraft
