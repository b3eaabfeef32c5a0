// SPDX-License-Identifier: Apache-2.0
#include <chrono>

#include "runtime/gpu/driver.h"
#include "runtime/gpu/emulator.h"

// The emulated device runs work while it is enqueued, so a stream has nothing to hold and an event
// is the time of its recording.
struct CUevent_st {
  std::chrono::steady_clock::time_point time;
};

namespace scgraft::gpu {

// Two, so that tensors of one can be mistaken for those of the other.
int device_count() { return 2; }
std::string why_no_device() { return {}; }
void use(Device) {}
int compute_capability(Device) { return emulator_options().compute_capability; }
DeviceFacts facts(int) {
  return {.name = "emulated device",
          .capability = emulator_options().compute_capability,
          .has_kernels = true};
}
std::string architectures() { return "the emulated device"; }
int driver_version() { return 0; }
int runtime_version() { return 0; }

StreamHandle create_stream(Device) { return nullptr; }
void destroy_stream(Device, StreamHandle) noexcept {}
void synchronize(Device, StreamHandle) {}

EventHandle create_event(Device) { return new CUevent_st; }
void destroy_event(EventHandle event) noexcept { delete event; }
void record(Device, EventHandle event, StreamHandle) {
  event->time = std::chrono::steady_clock::now();
}
void wait(Device, StreamHandle, EventHandle) {}
void synchronize(EventHandle) {}
double milliseconds(EventHandle begin, EventHandle end) {
  return std::chrono::duration<double, std::milli>(end->time - begin->time).count();
}

}  // namespace scgraft::gpu
