// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#include "runtime/gpu/memory.h"

namespace scgraft::gpu {

// Throws Error("E-MEMORY"): what was asked for, what is free, what to do.
[[noreturn]] void throw_out_of_memory(Device device, int64_t nbytes, MemoryInfo info);

}  // namespace scgraft::gpu
