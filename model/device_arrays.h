// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>
#include <cstring>
#include <vector>

#include "runtime/context.h"
#include "runtime/tensor.h"

namespace scgraft {

// Numbers that the host prepares for operations, and where those find them: in host memory, or,
// once DeviceArrays has sent them, on the device.
template <class T>
struct PreparedArray {
  std::vector<T> host;
  ConstTensorView device;  // empty: not sent, or nothing to send them to

  // [n]; after the last change of `host` and a send() where there is a device.
  ConstTensorView view() const {
    if (!device.empty()) return device;
    return view_of(host.data(), Shape{static_cast<int64_t>(host.size())});
  }
};

// Sends arrays to a device in one copy: a step prepares a dozen small ones, and each copy of its
// own would cost more than its bytes. Memory is kept and only grows.
class DeviceArrays {
 public:
  // In the order of the context's stream; views of an earlier call end. On the CPU nothing moves.
  // The arrays may be changed afterwards, their views must not outlive this object.
  template <class... T>
  void send(Context& ctx, PreparedArray<T>&... arrays) {
    ((arrays.device = {}), ...);
    if (ctx.device().is_cpu()) return;
    int64_t total = 0;
    ((total += padded<T>(arrays)), ...);
    reserve(ctx, total);
    int64_t offset = 0;
    ((place(arrays, offset), offset += padded<T>(arrays)), ...);
    copy_all(ctx, total);
  }

 private:
  static constexpr int64_t kAlign = 256;

  // Bytes of an array with the gap behind it; one that holds nothing has an address too.
  template <class T>
  static int64_t padded(const PreparedArray<T>& array) {
    const auto bytes = static_cast<int64_t>(array.host.size() * sizeof(T));
    return (bytes / kAlign + 1) * kAlign;
  }
  template <class T>
  void place(PreparedArray<T>& array, int64_t offset) {
    const size_t bytes = array.host.size() * sizeof(T);
    if (bytes > 0) std::memcpy(staging_.data() + offset, array.host.data(), bytes);
    array.device = ConstTensorView(
        static_cast<const std::byte*>(std::as_const(memory_).view().data()) + offset,
        {static_cast<int64_t>(array.host.size())}, DTypeOf<T>::value, memory_.device());
  }
  void reserve(Context& ctx, int64_t nbytes);
  void copy_all(Context& ctx, int64_t nbytes);

  std::vector<std::byte> staging_;
  Tensor memory_;
};

}  // namespace scgraft
