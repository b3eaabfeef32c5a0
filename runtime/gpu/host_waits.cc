// SPDX-License-Identifier: Apache-2.0
#include "runtime/gpu/host_waits.h"

#include <atomic>

namespace scgraft::gpu {
namespace {

std::atomic<int64_t> waits[3];

}  // namespace

HostWaits host_waits() {
  return {.streams = waits[static_cast<int>(HostWait::stream)],
          .events = waits[static_cast<int>(HostWait::event)],
          .copies = waits[static_cast<int>(HostWait::copy)]};
}

void count_wait(HostWait kind) { ++waits[static_cast<int>(kind)]; }

void PinnedRanges::add(const void* data, int64_t nbytes) {
  const std::lock_guard lock(mutex_);
  live_[static_cast<const char*>(data)] = nbytes;
}

bool PinnedRanges::remove(const void* data) {
  const std::lock_guard lock(mutex_);
  return live_.erase(static_cast<const char*>(data)) > 0;
}

bool PinnedRanges::contain(const void* data, int64_t nbytes) const {
  const auto* first = static_cast<const char*>(data);
  const std::lock_guard lock(mutex_);
  auto next = live_.upper_bound(first);
  if (next == live_.begin()) return false;
  --next;
  return first + nbytes <= next->first + next->second;
}

PinnedRanges& pinned_ranges() {
  // Never destroyed: buffers with static lifetime give their memory back after main.
  static PinnedRanges& instance = *new PinnedRanges;
  return instance;
}

}  // namespace scgraft::gpu
