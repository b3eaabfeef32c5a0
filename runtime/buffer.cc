// SPDX-License-Identifier: Apache-2.0
#include "runtime/buffer.h"

#include <cstdlib>
#include <cstring>

#include "runtime/config.h"
#include "runtime/error.h"
#include "runtime/gpu/memory.h"

namespace scgraft {
namespace {

std::shared_ptr<const void> zeros_on_host(int64_t nbytes) {
  const size_t padded = (static_cast<size_t>(nbytes) + 63) / 64 * 64;
  void* data = std::aligned_alloc(64, padded);
  if (data == nullptr)
    throw Error(cat("out of host memory: ", nbytes, " bytes were asked for"), "E-MEMORY");
  std::memset(data, 0, padded);
  return {data, [](const void* p) { std::free(const_cast<void*>(p)); }};
}

std::shared_ptr<const void> zeros_on_device(int64_t nbytes, Device device) {
  if constexpr (kBuiltWithCuda) {
    std::shared_ptr<const void> owner(gpu::allocate(device, nbytes), [device](const void* p) {
      gpu::release(device, const_cast<void*>(p));
    });
    gpu::fill_zero(device, const_cast<void*>(owner.get()), nbytes, nullptr);
    // Whichever stream uses the buffer finds it zeroed.
    gpu::synchronize(device, nullptr);
    return owner;
  }
  return nullptr;
}

}  // namespace

Buffer::Buffer(int64_t nbytes, Device device) : nbytes_(nbytes), device_(device) {
  require(nbytes >= 0, "a buffer cannot have ", nbytes, " bytes");
  if (nbytes == 0) return;
  owner_ = device.is_cuda() ? zeros_on_device(nbytes, device) : zeros_on_host(nbytes);
  data_ = const_cast<void*>(owner_.get());
}

Buffer::Buffer(std::shared_ptr<const void> owner, const void* data, int64_t nbytes)
    : owner_(std::move(owner)), data_(const_cast<void*>(data)), nbytes_(nbytes), shared_(true) {}

Buffer Buffer::staging(int64_t nbytes, Device device) {
  if constexpr (kBuiltWithCuda) {
    if (device.is_cuda() && nbytes > 0) {
      gpu::use(device);  // threads begin with the first device
      std::shared_ptr<const void> owner(gpu::allocate_pinned(nbytes), [](const void* p) {
        gpu::release_pinned(const_cast<void*>(p));
      });
      Buffer buffer(owner, owner.get(), nbytes);
      buffer.shared_ = false;
      std::memset(buffer.data_, 0, static_cast<size_t>(nbytes));
      return buffer;
    }
  }
  return Buffer(nbytes);
}

Buffer Buffer::share() const {
  Buffer copy(owner_, data_, nbytes_);
  copy.device_ = device_;
  return copy;
}

Buffer Buffer::slice(const std::shared_ptr<Buffer>& whole, int64_t offset, int64_t nbytes) {
  require(offset >= 0 && nbytes >= 0 && offset + nbytes <= whole->nbytes(), "bytes ", offset, "..",
          offset + nbytes, " of a buffer of ", whole->nbytes());
  Buffer part(whole, static_cast<const std::byte*>(whole->data()) + offset, nbytes);
  part.shared_ = whole->is_shared();
  part.device_ = whole->device();
  return part;
}

}  // namespace scgraft
