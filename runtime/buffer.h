// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

#include "runtime/device.h"

namespace scgraft {

// Owns bytes on one device, or shares the ownership of bytes that something else keeps alive (a
// mapped file). Move-only. No shape. Memory is 64-byte aligned (256 on a CUDA device) and starts as
// zeros.
class Buffer {
 public:
  Buffer() = default;
  // Throws Error("E-MEMORY") when the memory is not to be had.
  explicit Buffer(int64_t nbytes, Device device = Device::cpu());
  // Bytes inside `owner`, which stays alive as long as this buffer. Read-only for the caller.
  Buffer(std::shared_ptr<const void> owner, const void* data, int64_t nbytes);

  // Memory of the host for copies from and to `device` that the host need not wait for: pinned when
  // it is a CUDA device, else as any other. Throws Error("E-MEMORY").
  static Buffer staging(int64_t nbytes, Device device);

  // Writable bytes inside another buffer, which they keep alive: parameters that live side by side.
  static Buffer slice(const std::shared_ptr<Buffer>& whole, int64_t offset, int64_t nbytes);

  // The same bytes, kept alive together; read-only for both from here on.
  Buffer share() const;

  Buffer(Buffer&&) = default;
  Buffer& operator=(Buffer&&) = default;

  void* data() const { return data_; }
  int64_t nbytes() const { return nbytes_; }
  Device device() const { return device_; }
  // True when the bytes belong to a shared owner and must not be written.
  bool is_shared() const { return shared_; }

 private:
  std::shared_ptr<const void> owner_;
  void* data_ = nullptr;
  int64_t nbytes_ = 0;
  Device device_;
  bool shared_ = false;
};

}  // namespace scgraft
