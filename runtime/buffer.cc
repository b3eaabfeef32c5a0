// SPDX-License-Identifier: Apache-2.0
#include "runtime/buffer.h"

#include <cstdlib>
#include <cstring>

#include "runtime/error.h"

namespace scgraft {

Buffer::Buffer(int64_t nbytes, Device device) : nbytes_(nbytes), device_(device) {
  require(nbytes >= 0, "a buffer cannot have ", nbytes, " bytes");
  const size_t padded = (static_cast<size_t>(nbytes) + 63) / 64 * 64;
  if (padded == 0) return;
  void* data = std::aligned_alloc(64, padded);
  if (data == nullptr)
    throw Error(cat("out of host memory: ", nbytes, " bytes were asked for"), "E-MEMORY");
  std::memset(data, 0, padded);
  owner_ =
      std::shared_ptr<const void>(data, [](const void* p) { std::free(const_cast<void*>(p)); });
  data_ = data;
}

Buffer::Buffer(std::shared_ptr<const void> owner, const void* data, int64_t nbytes)
    : owner_(std::move(owner)), data_(const_cast<void*>(data)), nbytes_(nbytes), shared_(true) {}

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
