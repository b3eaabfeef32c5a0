// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#include "runtime/gpu/memory.h"

namespace scgraft::gpu {

// Memory of the emulated devices, for tests.
struct EmulatedMemory {
  int64_t total = int64_t{16} << 30;  // bytes of each device; allocations beyond it are refused
  int64_t foreign_releases = 0;       // release() of what allocate() did not give: a fault
};
EmulatedMemory& emulated_memory();

// How many allocations of a device are live now.
int64_t live_allocations(Device device);

// Which bytes inside an allocation may be used now. Only the address sanitizer looks.
void allow_access(const void* data, int64_t nbytes);
void forbid_access(const void* data, int64_t nbytes);

}  // namespace scgraft::gpu
