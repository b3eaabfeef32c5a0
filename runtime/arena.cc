// SPDX-License-Identifier: Apache-2.0
#include "runtime/arena.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "runtime/checked.h"
#include "runtime/config.h"
#include "runtime/gpu/memory_emulated.h"

namespace scgraft {

namespace {

constexpr int64_t kHostAlignment = 64;
// Rows that start at such an address are read in whole memory transactions.
constexpr int64_t kDeviceAlignment = 256;
constexpr int64_t kMostReserved = int64_t{1} << 40;
constexpr int64_t kLeastReserved = int64_t{1} << 26;
constexpr int64_t kLeastChunk = int64_t{1} << 20;

constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

}  // namespace

Arena::Arena(Device device, int64_t limit) : device_(device), limit_(limit) {
  if (device.is_cpu())
    reserve_host();
  else if (limit_ == 0)
    limit_ = std::numeric_limits<int64_t>::max();
}

Arena::~Arena() {
  if (device_.is_cuda())
    release_chunks(0);
  else
    for (const Chunk& chunk : chunks_) ::munmap(chunk.data, static_cast<size_t>(chunk.nbytes));
}

void Arena::reserve_host() {
  const bool limited = limit_ > 0;
  for (int64_t want = limited ? limit_ : kMostReserved;; want /= 2) {
    void* data = ::mmap(nullptr, static_cast<size_t>(want), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data != MAP_FAILED) {
      chunks_.push_back({static_cast<std::byte*>(data), want});
      allocations_ = 1;
      limit_ = want;
      return;
    }
    if (limited || want <= kLeastReserved)
      throw Error(cat("cannot reserve ", want, " bytes of address space"), "E-MEMORY");
  }
}

TensorView Arena::take(Shape shape, DType dtype) {
  const int64_t nbytes = (Checked(shape.numel()) * size_of(dtype)).value();
  const int64_t alignment = device_.is_cuda() ? kDeviceAlignment : kHostAlignment;
  // Under emulation a gap that nobody may touch lies behind every tensor.
  const int64_t gap = kCudaEmulated && device_.is_cuda() ? alignment : 0;
  const int64_t padded = (Checked(nbytes) + (alignment - 1)).value() / alignment * alignment + gap;
  if (padded > limit_ - used_) {
    Error error(cat("out of memory on ", device_, ": ", padded, " more bytes are needed, ",
                    limit_ - used_, " of ", limit_, " are free"),
                "E-MEMORY");
    error.set_hint("lower --batch-size or --max-genes");
    throw error;
  }
  // A tensor without elements has an address too.
  if (device_.is_cuda()) make_room(std::max(padded, alignment));
  std::byte* data = chunks_[chunk_].data + offset_;
  if constexpr (kCudaEmulated) {
    if (device_.is_cuda()) {
      gpu::allow_access(data, nbytes);
      // What an earlier scope left there must not look like a result.
      std::memset(data, 0xff, static_cast<size_t>(nbytes));
    }
  }
  offset_ += padded;
  used_ += padded;
  peak_ = std::max(peak_, used_);
  largest_ = std::max(largest_, used_);
  return TensorView(data, shape, dtype, device_);
}

void Arena::rewind(const Mark& mark) {
  if constexpr (kCudaEmulated) {
    if (device_.is_cuda())
      for (size_t i = mark.chunk; i < chunks_.size(); ++i) {
        const int64_t kept = i == mark.chunk ? mark.offset : 0;
        gpu::forbid_access(chunks_[i].data + kept, chunks_[i].nbytes - kept);
      }
  }
  chunk_ = mark.chunk;
  offset_ = mark.offset;
  used_ = mark.used;
}

void Arena::make_room(int64_t nbytes) {
  if (used_ == 0 && chunks_.size() > 1) {
    release_chunks(0);
    add_chunk(std::max(largest_, nbytes));
  }
  while (chunk_ < chunks_.size() && nbytes > chunks_[chunk_].nbytes - offset_) {
    ++chunk_;
    offset_ = 0;
  }
  if (chunk_ == chunks_.size()) {
    int64_t held = 0;
    for (const Chunk& chunk : chunks_) held += chunk.nbytes;
    // As much again as there is: a first step asks a few times, not at every take.
    int64_t want = std::min(std::max(held, kLeastChunk), limit_ - held);
    if constexpr (kBuiltWithCuda) want = std::min(want, gpu::memory_info(device_).free);
    add_chunk(std::max(nbytes, want));
  }
}

void Arena::add_chunk(int64_t nbytes) {
  if constexpr (kBuiltWithCuda) {
    auto* data = static_cast<std::byte*>(gpu::allocate(device_, nbytes));
    chunks_.push_back({data, nbytes});
    ++allocations_;
    if constexpr (kCudaEmulated) gpu::forbid_access(data, nbytes);
  }
}

void Arena::release_chunks(size_t first) {
  if constexpr (kBuiltWithCuda) {
    for (size_t i = first; i < chunks_.size(); ++i) {
      if constexpr (kCudaEmulated) gpu::allow_access(chunks_[i].data, chunks_[i].nbytes);
      gpu::release(device_, chunks_[i].data);
    }
    chunks_.resize(std::min(first, chunks_.size()));
    if (chunk_ >= first) chunk_ = offset_ = 0;
  }
}

void Arena::trim() {
  if (device_.is_cuda()) return release_chunks(used_ == 0 ? 0 : chunk_ + 1);
  const Chunk& chunk = chunks_.front();
  const int64_t begin = round_up(used_, ::sysconf(_SC_PAGESIZE));
  if (begin < chunk.nbytes)
    ::madvise(chunk.data + begin, static_cast<size_t>(chunk.nbytes - begin), MADV_DONTNEED);
}

}  // namespace scgraft
