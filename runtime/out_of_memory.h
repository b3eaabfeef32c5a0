// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <string>

#include "runtime/device.h"
#include "runtime/error.h"

namespace scgraft {

// "21.4 GB", "3 bytes": powers of ten, as drivers and disks count.
std::string readable_bytes(int64_t nbytes);

// The error of memory that is not to be had: what was asked for, what is free, what to do.
//   free, total  bytes; total may be a limit that was set
//   purpose      what it is for, e.g. "linear: f32 [64, 512]"; may be empty
Error out_of_memory(Device device, int64_t nbytes, int64_t free, int64_t total,
                    const std::string& purpose = {});

// The same of memory of the host that devices copy from and to; it is never swapped out.
Error out_of_pinned_memory(int64_t nbytes);

// Whether an error means that less work at once might fit.
bool is_out_of_memory(const Error& error);

}  // namespace scgraft
