// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
#include <cstdint>

#include "kernels/packing.h"
#include "runtime/parallel.h"

namespace scgraft {

// Calls body(begin, end) for the panels of kPanelRows rows that make up [0, rows), in parallel.
// For operations whose rows do not touch each other; cells may share a panel.
template <class Body>
void for_row_panels(Context& ctx, int64_t rows, Body&& body) {
  parallel_for(ctx, (rows + kPanelRows - 1) / kPanelRows, [&](int64_t panel) {
    const int64_t begin = panel * kPanelRows;
    body(begin, std::min(begin + kPanelRows, rows));
  });
}

// Calls body(begin, end) for pieces of [0, n), in parallel: element-wise operations.
template <class Body>
void for_element_blocks(Context& ctx, int64_t n, Body&& body) {
  constexpr int64_t kElements = 16384;
  parallel_for(ctx, (n + kElements - 1) / kElements, [&](int64_t block) {
    const int64_t begin = block * kElements;
    body(begin, std::min(begin + kElements, n));
  });
}

// Partial sums of one row: element f goes to lane f % kSumLanes, lanes are added as a tree. The
// order depends on nothing but the length of the row.
inline constexpr int kSumLanes = 32;

inline float sum_lanes(float* lanes) {
  for (int width = kSumLanes / 2; width > 0; width /= 2) {
#pragma omp simd
    for (int l = 0; l < width; ++l) lanes[l] += lanes[l + width];
  }
  return lanes[0];
}

// Sum of term(f) over f in [0, n) in that order.
template <class Term>
inline float sum_row(int64_t n, Term&& term) {
  float lanes[kSumLanes] = {};
  int64_t f = 0;
  for (; f + kSumLanes <= n; f += kSumLanes) {
#pragma omp simd
    for (int l = 0; l < kSumLanes; ++l) lanes[l] += term(f + l);
  }
  for (int l = 0; f + l < n; ++l) lanes[l] += term(f + l);
  return sum_lanes(lanes);
}

}  // namespace scgraft
