// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

namespace scgraft {

// The order of every sum over the elements of a row: element i goes to lane i % kSumLanes<T>, then
// the lanes are added pairwise. It depends on the length alone. A compiler may not reorder a plain
// sum, so the lanes are what lets it use vectors; written out, they do not move with the address of
// the data.
template <class T>
inline constexpr int kSumLanes = 128 / static_cast<int>(sizeof(T));

// Adds kSumLanes<T> lanes pairwise; they are used up.
template <class T>
T sum_lanes(T* lanes) {
  for (int width = kSumLanes<T> / 2; width > 0; width /= 2) {
#pragma omp simd
    for (int l = 0; l < width; ++l) lanes[l] += lanes[l + width];
  }
  return lanes[0];
}

// Sum of term(i) for 0 <= i < n in T (float or double), in that order.
template <class T, class Term>
T ordered_sum(int64_t n, Term&& term) {
  constexpr int kLanes = kSumLanes<T>;
  T lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
#pragma omp simd
    for (int l = 0; l < kLanes; ++l) lanes[l] += term(i + l);
  }
  for (int l = 0; i + l < n; ++l) lanes[l] += term(i + l);
  return sum_lanes(lanes);
}

// a . b over n elements.
template <class T>
T ordered_dot(const T* a, const T* b, int64_t n) {
  return ordered_sum<T>(n, [=](int64_t i) { return a[i] * b[i]; });
}

}  // namespace scgraft
