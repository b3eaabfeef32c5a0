// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <utility>

#include "runtime/device.h"
#include "runtime/gpu/driver.h"

namespace scgraft {

class Event;

// A queue of work on one device, done in order. On the CPU work is done when a call returns, and
// every member returns at once. Move-only.
class Stream {
 public:
  Stream() = default;  // of the CPU
  // Throws DeviceError when the device gives none.
  explicit Stream(Device device);
  ~Stream();
  Stream(Stream&& other) noexcept
      : device_(std::exchange(other.device_, Device::cpu())),
        handle_(std::exchange(other.handle_, nullptr)) {}
  Stream& operator=(Stream&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(handle_, other.handle_);
    return *this;
  }

  Device device() const { return device_; }
  // For launches and copies; null on the CPU.
  gpu::StreamHandle handle() const { return handle_; }

  // Waits until all work is done. Throws DeviceError with what went wrong in it.
  void synchronize() const;
  // Work enqueued from now on starts after the event. Throws DeviceError when the event has not
  // been recorded: it would wait for nothing.
  void wait(const Event& event) const;

 private:
  Device device_;
  gpu::StreamHandle handle_ = nullptr;
};

// A place in the work of a stream, to wait for and to take times. Move-only.
class Event {
 public:
  // Throws DeviceError on the CPU, where there is nothing to wait for.
  explicit Event(Device device);
  ~Event();
  Event(Event&& other) noexcept
      : device_(other.device_),
        handle_(std::exchange(other.handle_, nullptr)),
        recorded_(std::exchange(other.recorded_, false)) {}
  Event& operator=(Event&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(handle_, other.handle_);
    std::swap(recorded_, other.recorded_);
    return *this;
  }

  // Moves the event behind the work that the stream has now. Throws DeviceError when the stream is
  // of another device.
  void record(const Stream& stream);
  bool recorded() const { return recorded_; }
  // Waits for the work before the event. Throws DeviceError when it has not been recorded.
  void synchronize() const;
  // Time on the device between two recorded events, once both have passed.
  double milliseconds_since(const Event& begin) const;

 private:
  friend class Stream;
  void require_recorded(const char* what) const;

  Device device_;
  gpu::EventHandle handle_ = nullptr;
  bool recorded_ = false;
};

}  // namespace scgraft
