// SPDX-License-Identifier: Apache-2.0
#include "runtime/arena.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>

#include "runtime/checked.h"

namespace scgraft {

namespace {
constexpr int64_t kAlignment = 64;
constexpr int64_t kMostReserved = int64_t{1} << 40;
constexpr int64_t kLeastReserved = int64_t{1} << 26;
}  // namespace

Arena::Arena(Device device, int64_t limit) : device_(device) {
  int64_t want = limit > 0 ? limit : kMostReserved;
  for (;; want /= 2) {
    void* data = ::mmap(nullptr, static_cast<size_t>(want), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data != MAP_FAILED) {
      data_ = static_cast<std::byte*>(data);
      break;
    }
    if (limit > 0 || want <= kLeastReserved)
      throw Error(cat("cannot reserve ", want, " bytes of address space"), "E-MEMORY");
  }
  reserved_ = want;
  limit_ = want;
}

Arena::~Arena() {
  if (data_ != nullptr) ::munmap(data_, static_cast<size_t>(reserved_));
}

TensorView Arena::take(Shape shape, DType dtype) {
  const int64_t nbytes = (Checked(shape.numel()) * size_of(dtype)).value();
  const int64_t padded = (nbytes + kAlignment - 1) / kAlignment * kAlignment;
  if (padded > limit_ - used_) {
    Error error(cat("out of memory on ", device_, ": ", padded, " more bytes are needed, ",
                    limit_ - used_, " of ", limit_, " are free"),
                "E-MEMORY");
    error.set_hint("lower --batch-size or --max-genes");
    throw error;
  }
  TensorView view(data_ + used_, shape, dtype, device_);
  used_ += padded;
  peak_ = std::max(peak_, used_);
  return view;
}

void Arena::trim() {
  const int64_t page = ::sysconf(_SC_PAGESIZE);
  const int64_t begin = (used_ + page - 1) / page * page;
  if (begin < reserved_)
    ::madvise(data_ + begin, static_cast<size_t>(reserved_ - begin), MADV_DONTNEED);
}

}  // namespace scgraft
