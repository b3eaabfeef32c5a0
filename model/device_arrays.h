// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>
#include <cstring>
#include <optional>
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
// own would cost more than its bytes. They go through pinned memory, so that the host need not wait
// for the copy; two of these are used in turn, and the host waits only for the copy before the last
// one. Memory is kept and only grows.
class DeviceArrays {
 public:
  // In the order of the context's stream; views of an earlier call end. On the CPU nothing moves.
  // The arrays may be changed afterwards, their views must not outlive this object.
  template <class... T>
  void send(Context& ctx, PreparedArray<T>&... arrays) {
    ((arrays.device = {}), ...);
    if (ctx.device().is_cpu()) return;
    stage(ctx.device(), arrays...);
    transfer(ctx.stream(), arrays...);
  }

  // The two halves of it on a CUDA device. The first needs no stream and may run on another thread;
  // the second enqueues the copy. What then uses the arrays in another stream, and what used them
  // before, the caller orders.
  template <class... T>
  void stage(Device device, const PreparedArray<T>&... arrays) {
    int64_t offset = 0;
    ((offset += padded<T>(arrays)), ...);
    std::byte* const bytes = begin_stage(device, offset);
    offset = 0;
    ((put(bytes + offset, arrays), offset += padded<T>(arrays)), ...);
  }
  template <class... T>
  void transfer(const Stream& stream, PreparedArray<T>&... arrays) {
    int64_t offset = 0;
    ((offset += padded<T>(arrays)), ...);
    grow_memory(stream.device(), offset);
    copy_all(stream, offset);
    offset = 0;
    ((place(arrays, offset), offset += padded<T>(arrays)), ...);
  }

  // Room for so many bytes of arrays, each with its gap (kGap), on the device and in pinned memory.
  // Not between stage() and transfer().
  void reserve(Device device, int64_t nbytes);
  static constexpr int64_t kGap = 256;

 private:
  // Bytes of an array with the gap behind it; one that holds nothing has an address too.
  template <class T>
  static int64_t padded(const PreparedArray<T>& array) {
    const auto bytes = static_cast<int64_t>(array.host.size() * sizeof(T));
    return (bytes / kGap + 1) * kGap;
  }
  template <class T>
  static void put(std::byte* to, const PreparedArray<T>& array) {
    const size_t bytes = array.host.size() * sizeof(T);
    if (bytes > 0) std::memcpy(to, array.host.data(), bytes);
  }
  template <class T>
  void place(PreparedArray<T>& array, int64_t offset) {
    array.device = ConstTensorView(
        static_cast<const std::byte*>(std::as_const(memory_).view().data()) + offset,
        {static_cast<int64_t>(array.host.size())}, DTypeOf<T>::value, memory_.device());
  }
  void grow_memory(Device device, int64_t nbytes);
  // Memory that the copy before the last one has been made from.
  std::byte* begin_stage(Device device, int64_t nbytes);
  void copy_all(const Stream& stream, int64_t nbytes);

  struct Staging {
    Tensor bytes;               // pinned
    std::optional<Event> read;  // behind the copy from it
  };
  static void grow_staging(Staging& staging, Device device, int64_t nbytes);
  Staging staging_[2];
  int turn_ = 0;
  Tensor memory_;
};

}  // namespace scgraft
