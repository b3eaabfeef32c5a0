// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>

#include "runtime/config.h"

namespace scgraft {

// Philox4x32 with 10 rounds: a keyed bijection of 128-bit counters. A random number is a function
// of where it is used, never of how many were drawn before, so the CPU, a GPU and a resumed run
// see the same ones in any order.
// Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC11).
using PhiloxCounter = std::array<uint32_t, 4>;
using PhiloxKey = std::array<uint32_t, 2>;

SCGRAFT_HD constexpr PhiloxCounter philox(PhiloxCounter c, PhiloxKey k) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * c[0];
    const uint64_t b = uint64_t{0xCD9E8D57u} * c[2];
    c = {static_cast<uint32_t>(b >> 32) ^ c[1] ^ k[0], static_cast<uint32_t>(b),
         static_cast<uint32_t>(a >> 32) ^ c[3] ^ k[1], static_cast<uint32_t>(a)};
    k = {k[0] + 0x9E3779B9u, k[1] + 0xBB67AE85u};
  }
  return c;
}

// Uniform in [0, 1) with 53 random bits, from two 32-bit words.
constexpr double uniform53(uint32_t a, uint32_t b) {
  return ((a >> 5) * 67108864.0 + (b >> 6)) * (1.0 / 9007199254740992.0);
}
// Uniform in [0, 1) with 24 random bits.
SCGRAFT_HD constexpr float uniform24(uint32_t a) {
  return static_cast<float>(a >> 8) * (1.0f / 16777216.0f);
}

// What a random number is used for; the first counter word. Values are a file format (runs
// resume): add at the end, never renumber. Dropout sites start at `dropout` and add
// layer * 16 + slot.
enum class RandomUse : uint32_t {
  binning_ties = 1,
  gene_sampling = 2,
  masking = 3,
  shuffle = 4,
  split = 5,
  initialise = 6,
  simulate = 7,
  weighted_sampling = 8,
  baseline = 9,
  features = 10,
  dropout = 1024,
};

// A sequence of draws at one logical place, for host code (shuffles, sampling, initial values).
//
//   RandomStream r(seed, RandomUse::masking, epoch, cell);
//   double u = r.uniform();
class RandomStream {
 public:
  RandomStream(uint64_t seed, RandomUse use, uint32_t a = 0, uint32_t b = 0)
      : key_{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)},
        counter_{static_cast<uint32_t>(use), a, b, 0} {}

  uint32_t next() {
    if (left_ == 0) {
      block_ = philox(counter_, key_);
      ++counter_[3];
      left_ = 4;
    }
    return block_[static_cast<size_t>(4 - left_--)];
  }
  double uniform() {
    const uint32_t a = next();
    return uniform53(a, next());
  }
  // Uniform integer in [0, n), n > 0, without bias.
  uint64_t below(uint64_t n) {
    const uint64_t reject = (0 - n) % n;
    for (;;) {
      const uint64_t high = next();
      const uint64_t u = high << 32 | next();
      const unsigned __int128 wide = static_cast<unsigned __int128>(u) * n;
      if (static_cast<uint64_t>(wide) >= reject) return static_cast<uint64_t>(wide >> 64);
    }
  }
  // Standard normal (Box-Muller).
  double normal();

 private:
  PhiloxKey key_;
  PhiloxCounter counter_;
  PhiloxCounter block_{};
  int left_ = 0;
};

}  // namespace scgraft
