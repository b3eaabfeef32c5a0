// SPDX-License-Identifier: Apache-2.0
#include <vector>

#include "runtime/gpu/architectures.h"
#include "runtime/gpu/cuda_error.h"
#include "runtime/gpu/driver.h"
#include "runtime/gpu/host_waits.h"

namespace scgraft::gpu {
namespace {

struct Devices {
  int count = 0;
  cudaError_t error = cudaSuccess;
};

// Asked once: the count does not change while a process runs.
const Devices& devices() {
  static const Devices found = [] {
    Devices d;
    int count = 0;
    d.error = cudaGetDeviceCount(&count);
    // Without a driver the call fails and leaves the count as it was.
    if (d.error == cudaSuccess) d.count = count;
    return d;
  }();
  return found;
}

const DeviceFacts& known_facts(Device device) {
  static const std::vector<DeviceFacts> known = [] {
    std::vector<DeviceFacts> found;
    for (int index = 0; index < device_count(); ++index) found.push_back(facts(index));
    return found;
  }();
  return known[static_cast<size_t>(device.index())];
}

}  // namespace

int device_count() { return devices().count; }

std::string why_no_device() {
  const cudaError_t error = devices().error;
  return error == cudaSuccess ? "the driver lists none" : cudaGetErrorString(error);
}

void use(Device device) { require_cuda(cudaSetDevice(device.index()), "selecting ", device); }

DeviceFacts facts(int index) {
  cudaDeviceProp properties{};
  require_cuda(cudaGetDeviceProperties(&properties, index), "properties of device ", index);
  const int capability = 10 * properties.major + properties.minor;
  return {.name = properties.name,
          .capability = capability,
          .has_kernels = runs_on(SCGRAFT_CUDA_ARCHITECTURES, capability),
          .shared_limit = static_cast<int64_t>(properties.sharedMemPerBlockOptin)};
}

int compute_capability(Device device) { return known_facts(device).capability; }
int64_t shared_memory_limit(Device device) { return known_facts(device).shared_limit; }

std::string architectures() { return readable_architectures(SCGRAFT_CUDA_ARCHITECTURES); }

int driver_version() {
  int version = 0;
  (void)cudaDriverGetVersion(&version);
  return version;
}

int runtime_version() { return CUDART_VERSION; }

StreamHandle create_stream(Device device) {
  use(device);
  cudaStream_t stream = nullptr;
  // A blocking stream: copies without a stream (Tensor::to) are ordered after its work.
  require_cuda(cudaStreamCreate(&stream), "stream on ", device);
  return stream;
}

void destroy_stream(Device device, StreamHandle stream) noexcept {
  (void)cudaSetDevice(device.index());
  (void)cudaStreamDestroy(stream);
}

void synchronize(Device device, StreamHandle stream) {
  count_wait(HostWait::stream);
  use(device);
  require_cuda(cudaStreamSynchronize(stream), "work on ", device);
}

EventHandle create_event(Device device) {
  use(device);
  cudaEvent_t event = nullptr;
  require_cuda(cudaEventCreate(&event), "event on ", device);
  return event;
}

void destroy_event(EventHandle event) noexcept { (void)cudaEventDestroy(event); }

void record(Device device, EventHandle event, StreamHandle stream) {
  use(device);
  require_cuda(cudaEventRecord(event, stream), "event on ", device);
}

void wait(Device device, StreamHandle stream, EventHandle event) {
  use(device);
  require_cuda(cudaStreamWaitEvent(stream, event, 0), "event on ", device);
}

void synchronize(EventHandle event) {
  count_wait(HostWait::event);
  require_cuda(cudaEventSynchronize(event), "work before an event");
}

double milliseconds(EventHandle begin, EventHandle end) {
  float ms = 0;
  require_cuda(cudaEventElapsedTime(&ms, begin, end), "time between two events");
  return static_cast<double>(ms);
}

}  // namespace scgraft::gpu
