// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

namespace scgraft {

// Sum of term(i) for 0 <= i < n in T (float or double), in an order that depends on n alone: lane
// i % kLanes first, then the lanes pairwise. A compiler may not reorder a plain sum, so the lanes
// are what lets it use vectors; written out, they do not move with the address of the data.
template <class T, class Term>
T ordered_sum(int64_t n, Term&& term) {
  constexpr int kLanes = 128 / static_cast<int>(sizeof(T));
  T lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
#pragma omp simd
    for (int l = 0; l < kLanes; ++l) lanes[l] += term(i + l);
  }
  for (int l = 0; i + l < n; ++l) lanes[l] += term(i + l);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int l = 0; l < width; ++l) lanes[l] += lanes[l + width];
  return lanes[0];
}

// a . b over n elements.
template <class T>
T ordered_dot(const T* a, const T* b, int64_t n) {
  return ordered_sum<T>(n, [=](int64_t i) { return a[i] * b[i]; });
}

}  // namespace scgraft
