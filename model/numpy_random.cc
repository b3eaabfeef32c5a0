// SPDX-License-Identifier: Apache-2.0
#include "model/numpy_random.h"

#include <bit>
#include <numeric>
#include <utility>

#include "runtime/error.h"

namespace scgraft {

uint32_t NumpyRandom::up_to(uint32_t max) {
  if (max == 0) return 0;
  const uint32_t mask = ~uint32_t{0} >> std::countl_zero(max);
  for (;;) {
    const uint32_t value = next() & mask;
    if (value <= max) return value;
  }
}

std::vector<int32_t> NumpyRandom::sample(int32_t n, int32_t k) {
  require(0 <= k && k <= n, "sample: wanted 0 <= k <= n, got k ", k, " of n ", n);
  std::vector<int32_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  for (int32_t i = n - 1; i >= 1; --i)
    std::swap(order[static_cast<size_t>(i)], order[up_to(static_cast<uint32_t>(i))]);
  order.resize(static_cast<size_t>(k));
  return order;
}

}  // namespace scgraft
