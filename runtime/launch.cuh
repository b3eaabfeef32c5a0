// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <utility>

#include "runtime/context.h"
#include "runtime/gpu/gpu.cuh"
#include "runtime/launch_check.h"

namespace scgraft {

// Enqueues a kernel on the context's stream; returns at once when the grid is empty.
//
//   launch(ctx, "add", add_kernel<float>, {.x = ceil_div(n, 256)}, 256, 0, a, b, y);
//
// Throws DeviceError naming the op when the launch is refused. A fault inside the kernel shows
// later, at the next synchronisation; with SCGRAFT_SYNC=1 in the environment every launch waits for
// its kernel, and the error names the op that failed.
template <class... P, class... A>
void launch(Context& ctx, const char* op, void (*kernel)(P...), gpu::Grid grid, int block,
            int64_t shared_bytes, A&&... args) {
  try {
    gpu::use(ctx.device());
    gpu::launch_kernel(kernel, grid, block, shared_bytes, ctx.stream().handle(),
                       std::forward<A>(args)...);
    if (synchronous_launches()) ctx.synchronize();
  } catch (const DeviceError& error) {
    rethrow_naming(op, error);
  }
}

}  // namespace scgraft
