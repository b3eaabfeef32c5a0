// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <random>
#include <vector>

#include "runtime/random.h"

namespace scgraft {

// The legacy generator of NumPy (numpy.random.seed and the functions beside it), so that results
// of published Python pipelines can be reproduced number by number. A sequence: what is drawn
// depends on everything drawn before, so it serves one thread and no resume. Everything else uses
// RandomStream.
// Source: MT19937 (Matsumoto, Nishimura 1998) with its scalar seeding.
class NumpyRandom {
 public:
  explicit NumpyRandom(uint32_t seed) : words_(seed) {}

  // Uniform in [0, 1) with 53 bits: random_sample().
  double uniform() {
    const uint32_t a = next();
    return uniform53(a, next());
  }

  // Uniform integer in [0, max]: words cut to the bits of max until one is not larger.
  uint32_t up_to(uint32_t max);

  // k of 0..n-1 in the order drawn, 0 <= k <= n: choice(n, k, replace=False). Always shuffles all.
  std::vector<int32_t> sample(int32_t n, int32_t k);

 private:
  uint32_t next() { return static_cast<uint32_t>(words_()); }

  std::mt19937 words_;
};

}  // namespace scgraft
