// SPDX-License-Identifier: Apache-2.0
#include <cstdlib>
#include <map>
#include <mutex>
#include <string_view>

#include "runtime/gpu/cuda_error.h"
#include "runtime/gpu/host_waits.h"
#include "runtime/gpu/memory.h"
#include "runtime/out_of_memory.h"

namespace scgraft::gpu {
namespace {

bool managed() {
  static const bool asked = [] {
    const char* text = std::getenv("SCGRAFT_MANAGED");
    return text != nullptr && std::string_view(text) == "1";
  }();
  return asked;
}

// What allocate() gave, so that the sum is known: the driver's count includes other programs.
class Held {
 public:
  void add(Device device, void* data, int64_t nbytes) {
    const std::lock_guard lock(mutex_);
    live_[data] = {device, nbytes};
  }
  void remove(void* data) {
    const std::lock_guard lock(mutex_);
    live_.erase(data);
  }
  int64_t bytes(Device device) const {
    const std::lock_guard lock(mutex_);
    int64_t sum = 0;
    for (const auto& [data, one] : live_)
      if (one.first == device) sum += one.second;
    return sum;
  }

 private:
  mutable std::mutex mutex_;
  std::map<void*, std::pair<Device, int64_t>> live_;
};

Held& held() {
  // Never destroyed: tensors with static lifetime give their memory back after main.
  static Held& instance = *new Held;
  return instance;
}

}  // namespace

int64_t allocated(Device device) { return held().bytes(device); }

MemoryInfo memory_info(Device device) {
  use(device);
  size_t available = 0, total = 0;
  require_cuda(cudaMemGetInfo(&available, &total), "memory of ", device);
  return {.free = static_cast<int64_t>(available), .total = static_cast<int64_t>(total)};
}

void* allocate(Device device, int64_t nbytes) {
  require(nbytes > 0, "an allocation on ", device, " cannot have ", nbytes, " bytes");
  use(device);
  void* data = nullptr;
  const auto size = static_cast<size_t>(nbytes);
  const cudaError_t error = managed() ? cudaMallocManaged(&data, size) : cudaMalloc(&data, size);
  if (error == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();
    const MemoryInfo info = memory_info(device);
    throw out_of_memory(device, nbytes, info.free, info.total);
  }
  require_cuda(error, "allocation of ", nbytes, " bytes on ", device);
  held().add(device, data, nbytes);
  return data;
}

void release(Device device, void* data) noexcept {
  held().remove(data);
  // Fails only after a fault that has been reported, or while the process ends.
  (void)cudaSetDevice(device.index());
  (void)cudaFree(data);
}

void* allocate_pinned(int64_t nbytes) {
  require(nbytes > 0, "an allocation of pinned memory cannot have ", nbytes, " bytes");
  void* data = nullptr;
  // Portable: of every device, whichever is current.
  const cudaError_t error =
      cudaHostAlloc(&data, static_cast<size_t>(nbytes), cudaHostAllocPortable);
  if (error == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();
    throw out_of_pinned_memory(nbytes);
  }
  require_cuda(error, "allocation of ", nbytes, " bytes of pinned memory");
  pinned_ranges().add(data, nbytes);
  return data;
}

void release_pinned(void* data) noexcept {
  pinned_ranges().remove(data);
  (void)cudaFreeHost(data);
}

void copy(Device to, void* destination, Device from, const void* source, int64_t nbytes,
          StreamHandle stream) {
  if (nbytes == 0) return;
  use(to.is_cuda() ? to : from);
  const auto size = static_cast<size_t>(nbytes);
  if (to.is_cuda() && from.is_cuda() && to != from) {
    require_cuda(cudaMemcpyPeerAsync(destination, to.index(), source, from.index(), size, stream),
                 "copy of ", nbytes, " bytes from ", from, " to ", to);
    return;
  }
  if ((to.is_cpu() || from.is_cpu()) &&
      !pinned_ranges().contain(to.is_cpu() ? destination : source, nbytes))
    count_wait(HostWait::copy);
  const cudaMemcpyKind kind = to.is_cpu()     ? cudaMemcpyDeviceToHost
                              : from.is_cpu() ? cudaMemcpyHostToDevice
                                              : cudaMemcpyDeviceToDevice;
  require_cuda(cudaMemcpyAsync(destination, source, size, kind, stream), "copy of ", nbytes,
               " bytes from ", from, " to ", to);
}

void fill_zero(Device device, void* data, int64_t nbytes, StreamHandle stream) {
  if (nbytes == 0) return;
  use(device);
  require_cuda(cudaMemsetAsync(data, 0, static_cast<size_t>(nbytes), stream), "zeros on ", device);
}

}  // namespace scgraft::gpu
