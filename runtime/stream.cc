// SPDX-License-Identifier: Apache-2.0
#include "runtime/stream.h"

#include "runtime/config.h"
#include "runtime/error.h"

namespace scgraft {

Stream::Stream(Device device) : device_(device) {
  if constexpr (kBuiltWithCuda) {
    if (device.is_cuda()) handle_ = gpu::create_stream(device);
  }
}

Stream::~Stream() {
  if constexpr (kBuiltWithCuda) {
    if (handle_ != nullptr) gpu::destroy_stream(device_, handle_);
  }
}

void Stream::synchronize() const {
  if constexpr (kBuiltWithCuda) {
    if (device_.is_cuda()) gpu::synchronize(device_, handle_);
  }
}

void Stream::wait(const Event& event) const {
  event.require_recorded("wait");
  if constexpr (kBuiltWithCuda) {
    if (device_.is_cuda()) return gpu::wait(device_, handle_, event.handle_);
  }
  event.synchronize();
}

Event::Event(Device device) : device_(device) {
  require<DeviceError>(device.is_cuda(), "events are of CUDA devices, not of ", device);
  if constexpr (kBuiltWithCuda) handle_ = gpu::create_event(device);
}

Event::~Event() {
  if constexpr (kBuiltWithCuda) {
    if (handle_ != nullptr) gpu::destroy_event(handle_);
  }
}

void Event::record(const Stream& stream) {
  require<DeviceError>(stream.device() == device_, "an event of ", device_,
                       " cannot be recorded in a stream of ", stream.device());
  if constexpr (kBuiltWithCuda) gpu::record(device_, handle_, stream.handle());
  recorded_ = true;
}

void Event::synchronize() const {
  require_recorded("synchronize");
  if constexpr (kBuiltWithCuda) gpu::synchronize(handle_);
}

double Event::milliseconds_since(const Event& begin) const {
  begin.require_recorded("milliseconds_since");
  require_recorded("milliseconds_since");
  if constexpr (kBuiltWithCuda) return gpu::milliseconds(begin.handle_, handle_);
  return 0;
}

void Event::require_recorded(const char* what) const {
  require<DeviceError>(recorded_, what,
                       ": the event has not been recorded, there is nothing to wait for");
}

}  // namespace scgraft
