// SPDX-License-Identifier: Apache-2.0
#include "runtime/gpu/memory_emulated.h"

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "runtime/gpu/host_waits.h"
#include "runtime/gpu/streams_emulated.h"
#include "runtime/out_of_memory.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(data, size) (static_cast<void>(data), static_cast<void>(size))
#define ASAN_UNPOISON_MEMORY_REGION(data, size) (static_cast<void>(data), static_cast<void>(size))
#endif

namespace scgraft::gpu {
namespace {

struct Allocation {
  int64_t nbytes;
  Device device;
};

struct Heap {
  std::mutex mutex;
  std::map<const std::byte*, Allocation> live;  // by first byte

  // The allocation that the byte lies in, or null.
  const Allocation* find(const std::byte* data) const {
    auto next = live.upper_bound(data);
    if (next == live.begin()) return nullptr;
    --next;
    return data < next->first + next->second.nbytes ? &next->second : nullptr;
  }
  int64_t live_bytes(Device device) const {
    int64_t sum = 0;
    for (const auto& [data, allocation] : live)
      if (allocation.device == device) sum += allocation.nbytes;
    return sum;
  }
  // Throws when [data, data + nbytes) is not memory of the device (of the host: not of the host).
  void require_memory(const char* what, Device device, const void* data, int64_t nbytes) const {
    const auto* first = static_cast<const std::byte*>(data);
    const Allocation* allocation = find(first);
    if (device.is_cpu()) {
      require<DeviceError>(allocation == nullptr, what,
                           ": the memory named as the host's belongs to a device");
      return;
    }
    require<DeviceError>(allocation != nullptr && allocation->device == device, what,
                         ": the memory named as that of ", device, " is not");
    require<DeviceError>(allocation == find(first + nbytes - 1), what, ": ", nbytes,
                         " bytes reach beyond an allocation on ", device);
  }
};

Heap& heap() {
  // Never destroyed: tensors with static lifetime give their memory back after main.
  static Heap& instance = *new Heap;
  return instance;
}

}  // namespace

EmulatedMemory& emulated_memory() {
  static EmulatedMemory instance;
  return instance;
}

int64_t allocated(Device device) {
  const std::lock_guard lock(heap().mutex);
  return heap().live_bytes(device);
}

int64_t live_allocations(Device device) {
  const std::lock_guard lock(heap().mutex);
  int64_t count = 0;
  for (const auto& [data, allocation] : heap().live) count += allocation.device == device;
  return count;
}

MemoryInfo memory_info(Device device) {
  const int64_t total = emulated_memory().total;
  return {.free = std::max<int64_t>(0, total - allocated(device)), .total = total};
}

void* allocate(Device device, int64_t nbytes) {
  require(nbytes > 0, "an allocation on ", device, " cannot have ", nbytes, " bytes");
  const MemoryInfo info = memory_info(device);
  void* data = nullptr;
  // Of exactly this size, so that a sanitizer sees the first byte behind it.
  if (nbytes > info.free || ::posix_memalign(&data, 256, static_cast<size_t>(nbytes)) != 0)
    throw out_of_memory(device, nbytes, info.free, info.total);
  // Fresh memory of a GPU holds anything; NaN is what shows.
  std::memset(data, 0xff, static_cast<size_t>(nbytes));
  const std::lock_guard lock(heap().mutex);
  heap().live[static_cast<const std::byte*>(data)] = {nbytes, device};
  return data;
}

void release(Device device, void* data) noexcept {
  emulated::finish_all();
  {
    const std::lock_guard lock(heap().mutex);
    const auto found = heap().live.find(static_cast<const std::byte*>(data));
    if (found == heap().live.end() || found->second.device != device) {
      ++emulated_memory().foreign_releases;
      return;
    }
    heap().live.erase(found);
  }
  std::free(data);
}

void* allocate_pinned(int64_t nbytes) {
  require(nbytes > 0, "an allocation of pinned memory cannot have ", nbytes, " bytes");
  void* data = nullptr;
  if (::posix_memalign(&data, 256, static_cast<size_t>(nbytes)) != 0)
    throw out_of_pinned_memory(nbytes);
  pinned_ranges().add(data, nbytes);
  return data;
}

void release_pinned(void* data) noexcept {
  emulated::finish_all();
  if (!pinned_ranges().remove(data))
    ++emulated_memory().foreign_releases;
  else
    std::free(data);
}

void copy(Device to, void* destination, Device from, const void* source, int64_t nbytes,
          StreamHandle stream) {
  if (nbytes == 0) return;
  {
    const std::lock_guard lock(heap().mutex);
    heap().require_memory("copy to", to, destination, nbytes);
    heap().require_memory("copy from", from, source, nbytes);
  }
  if (to.is_cpu() || from.is_cpu()) {
    if (pinned_ranges().contain(to.is_cpu() ? destination : source, nbytes))
      return emulated::enqueue_copy(stream, destination, source, nbytes, to.is_cpu());
    count_wait(HostWait::copy);
  }
  emulated::run_pending(stream);
  std::memmove(destination, source, static_cast<size_t>(nbytes));
}

void fill_zero(Device device, void* data, int64_t nbytes, StreamHandle stream) {
  if (nbytes == 0) return;
  {
    const std::lock_guard lock(heap().mutex);
    heap().require_memory("fill", device, data, nbytes);
  }
  emulated::run_pending(stream);
  std::memset(data, 0, static_cast<size_t>(nbytes));
}

void allow_access(const void* data, int64_t nbytes) {
  ASAN_UNPOISON_MEMORY_REGION(data, static_cast<size_t>(nbytes));
}

void forbid_access(const void* data, int64_t nbytes) {
  ASAN_POISON_MEMORY_REGION(data, static_cast<size_t>(nbytes));
}

}  // namespace scgraft::gpu
