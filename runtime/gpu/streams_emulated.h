// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#include "runtime/device.h"
#include "runtime/gpu/driver.h"

// Streams of the emulated device. Kernels, fills and copies with pageable memory run while they are
// enqueued, after all that their stream holds. Copies between the device and pinned memory are held
// back as long as CUDA may: what is read before it was waited for is old, or NaN.
//
//   to the device  taken from the host when something waits for it: later work of the stream, a
//                  stream that waited for an event behind it, or the host. Until then its
//                  destination is NaN, when nothing of the stream came before it.
//   to the host    taken from the device before later work of the stream, and given to the host
//                  when the host waits for the stream or for an event behind it. Until then its
//                  destination is NaN.
namespace scgraft::gpu {

// When such copies happen: as late as CUDA may do them, or at once.
enum class CopyTime { late, early };

// Of later copies of the process; late unless a test says otherwise.
CopyTime& emulated_copy_time();

namespace emulated {

// Enqueues a copy with pinned memory. One of the two is memory of the host.
void enqueue_copy(StreamHandle stream, void* to, const void* from, int64_t nbytes, bool to_host);
// Before work of the stream that runs at once. Null: the stream that waits for all others.
void run_pending(StreamHandle stream);
// Before memory of a device gets another use behind the back of its streams: all copies up to the
// last one from or to it.
void run_pending_of(const void* data, int64_t nbytes);
// Before memory is released: everything happens and arrives.
void finish_all();

}  // namespace emulated
}  // namespace scgraft::gpu
