// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
#include <cstdint>

#include "runtime/parallel.h"

namespace scgraft {

// Cells that parallel_rows() hands to a thread at once.
inline constexpr int64_t kRowBlock = 32;

// Calls body(begin, end) for blocks of [0, rows) on the context's threads; see parallel_for().
template <class Body>
void parallel_rows(Context& ctx, int64_t rows, Body&& body) {
  parallel_for(ctx, (rows + kRowBlock - 1) / kRowBlock, [&](int64_t block) {
    body(block * kRowBlock, std::min(rows, (block + 1) * kRowBlock));
  });
}

}  // namespace scgraft
