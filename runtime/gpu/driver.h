// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <string>

#include "runtime/device.h"
#include "runtime/gpu/types.h"

struct CUevent_st;  // opaque, like CUstream_st

// What the runtime asks of a CUDA back end: devices, streams and events. driver_cuda.cc does it by
// the CUDA runtime, driver_emulated.cc in this process; a build without CUDA has neither, and calls
// stand behind `if constexpr (kBuiltWithCuda)`. Failures are DeviceError.
namespace scgraft::gpu {

using EventHandle = CUevent_st*;

// 0 when no device can be used. Never throws.
int device_count();
// The reason for device_count() == 0, in the driver's words.
std::string why_no_device();
// Makes the device the one that the calling thread launches on.
void use(Device device);
// As in facts(), asked once per device.
int compute_capability(Device device);
int64_t shared_memory_limit(Device device);
struct DeviceFacts {
  std::string name;          // of the product
  int capability = 0;        // 75 for 7.5 and so on
  bool has_kernels = false;  // this program was compiled for it
  int64_t shared_limit = 0;  // bytes of shared memory that a block may have
};
DeviceFacts facts(int index);
// What kernels of this program were compiled for: "75 80 90a".
std::string architectures();
// Newest CUDA version that the driver can run, and the one this program was built with: 13000 for
// 13.0. The first is 0 without a driver.
int driver_version();
int runtime_version();

StreamHandle create_stream(Device device);
void destroy_stream(Device device, StreamHandle stream) noexcept;
// Waits for all work of the stream. Reports what went wrong in it.
void synchronize(Device device, StreamHandle stream);

EventHandle create_event(Device device);
void destroy_event(EventHandle event) noexcept;
void record(Device device, EventHandle event, StreamHandle stream);
// Later work of the stream starts after the event.
void wait(Device device, StreamHandle stream, EventHandle event);
void synchronize(EventHandle event);
double milliseconds(EventHandle begin, EventHandle end);

}  // namespace scgraft::gpu
