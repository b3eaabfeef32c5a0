// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
#include <cstdint>

#include "runtime/parallel.h"

namespace scgraft {

// Calls body(i) for 0 <= i < n like parallel_for(), many neighbours per task, and on the calling
// thread when the whole is small. A minimiser calls this hundreds of times for a millisecond of
// work each; on a machine whose cores are taken, waiting for a second thread costs far more.
//
//   work  operations of one body, roughly
template <class Body>
void parallel_blocks(Context& ctx, int64_t n, int64_t work, Body&& body) {
  constexpr int64_t kWorkPerTask = 1 << 22;  // a few milliseconds
  const int64_t size = std::max<int64_t>(1, kWorkPerTask / std::max<int64_t>(1, work));
  parallel_for(ctx, (n + size - 1) / size, [&](int64_t task) {
    const int64_t end = std::min(n, (task + 1) * size);
    for (int64_t i = task * size; i < end; ++i) body(i);
  });
}

}  // namespace scgraft
