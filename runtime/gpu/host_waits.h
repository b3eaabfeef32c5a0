// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <map>
#include <mutex>

namespace scgraft::gpu {

// How often the host has waited for devices so far, in the whole program.
struct HostWaits {
  int64_t streams = 0;  // for all work of a stream
  int64_t events = 0;   // for the work before an event
  int64_t copies = 0;   // copies from or to memory that is not pinned: CUDA may wait in each
};
HostWaits host_waits();

// For back ends.
enum class HostWait { stream, event, copy };
void count_wait(HostWait kind);

// The pinned memory that a back end has given.
class PinnedRanges {
 public:
  void add(const void* data, int64_t nbytes);
  // False: it is none.
  bool remove(const void* data);
  // Whether all of [data, data + nbytes) is pinned.
  bool contain(const void* data, int64_t nbytes) const;

 private:
  mutable std::mutex mutex_;
  std::map<const char*, int64_t> live_;  // bytes, by first byte
};
PinnedRanges& pinned_ranges();

}  // namespace scgraft::gpu
