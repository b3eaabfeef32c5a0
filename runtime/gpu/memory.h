// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#include "runtime/gpu/driver.h"

// The only place where memory of a CUDA device is allocated and copied.
namespace scgraft::gpu {

struct MemoryInfo {
  int64_t free = 0;   // bytes
  int64_t total = 0;  // bytes
};
MemoryInfo memory_info(Device device);
// Bytes that this program holds there: given by allocate(), not yet taken back by release().
int64_t allocated(Device device);

// nbytes > 0, aligned to 256 bytes, content undefined. Throws Error("E-MEMORY") saying what was
// wanted and what is free. With SCGRAFT_MANAGED=1 in the environment the host may read and write
// the memory too, once the work that uses it has finished: for tests.
void* allocate(Device device, int64_t nbytes);
// Waits for work that may still use the memory. `data` comes from allocate.
void release(Device device, void* data) noexcept;

// Memory of the host that devices copy from and to while the host does other things. nbytes > 0,
// content undefined. Throws Error("E-MEMORY").
void* allocate_pinned(int64_t nbytes);
// Waits for copies that may still use the memory. `data` comes from allocate_pinned.
void release_pinned(void* data) noexcept;

// Copies between the host and devices, or between two devices; one of the two is a device. Enqueued
// on `stream`. A copy to the host has arrived after the stream, or an event behind it, has been
// synchronised. The host side may be reused when the call returns; pinned memory not before the
// copy was waited for, and only with it does the host never wait in this call. Throws DeviceError
// when memory named as a device's is not.
void copy(Device to, void* destination, Device from, const void* source, int64_t nbytes,
          StreamHandle stream);
void fill_zero(Device device, void* data, int64_t nbytes, StreamHandle stream);

}  // namespace scgraft::gpu
