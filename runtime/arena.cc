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
#include "runtime/gpu/streams_emulated.h"
#include "runtime/out_of_memory.h"

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

Arena::Arena(Device device, int64_t limit, const char* const* op)
    : device_(device), limit_(limit), op_(op) {
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
  if (device_.is_cpu()) {
    if (padded > limit_ - used_) throw_full(padded, shape, dtype);
  } else if (!make_room(std::max(padded, alignment))) {  // one without elements has an address too
    throw_full(padded, shape, dtype);
  }
  std::byte* data = chunks_[chunk_].data + offset_;
  if constexpr (kCudaEmulated) {
    if (device_.is_cuda()) {
      gpu::allow_access(data, nbytes);
      gpu::emulated::run_pending_of(data, nbytes);
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
        gpu::emulated::run_pending_of(chunks_[i].data + kept, chunks_[i].nbytes - kept);
        gpu::forbid_access(chunks_[i].data + kept, chunks_[i].nbytes - kept);
      }
  }
  chunk_ = mark.chunk;
  offset_ = mark.offset;
  used_ = mark.used;
}

void Arena::throw_full(int64_t nbytes, const Shape& shape, DType dtype) const {
  std::string purpose = cat(dtype, " ", shape);
  if (op_ != nullptr && *op_ != nullptr) purpose = cat(*op_, ": ", purpose);
  int64_t free = limit_ - used_, total = limit_;
  if constexpr (kBuiltWithCuda) {
    if (device_.is_cuda()) {
      free = std::max<int64_t>(0, allowed());
      total = std::min(limit_, gpu::memory_info(device_).total);
    }
  }
  throw out_of_memory(device_, nbytes, free, total, purpose);
}

int64_t Arena::allowed() const {
  if constexpr (kBuiltWithCuda)
    return std::min(limit_ - gpu::allocated(device_), gpu::memory_info(device_).free);
  return 0;
}

bool Arena::make_room(int64_t nbytes) {
  if (used_ == 0 && chunks_.size() > 1) {
    release_chunks(0);
    if (!add_chunk(std::max(largest_, nbytes))) return add_chunk(nbytes);
  }
  size_t chunk = chunk_;
  int64_t offset = offset_;
  while (chunk < chunks_.size() && nbytes > chunks_[chunk].nbytes - offset) {
    ++chunk;
    offset = 0;
  }
  if (chunk == chunks_.size()) {
    int64_t held = 0;
    for (const Chunk& one : chunks_) held += one.nbytes;
    // As much again as there is: a first step asks a few times, not at every take.
    const int64_t want = std::max(nbytes, std::min(std::max(held, kLeastChunk), allowed()));
    if (!add_chunk(want) && (want == nbytes || !add_chunk(nbytes))) return false;
  }
  chunk_ = chunk;
  offset_ = offset;
  return true;
}

bool Arena::add_chunk(int64_t nbytes) {
  if constexpr (kBuiltWithCuda) {
    if (nbytes > allowed()) return false;
    std::byte* data = nullptr;
    try {
      data = static_cast<std::byte*>(gpu::allocate(device_, nbytes));
    } catch (const Error& error) {
      if (!is_out_of_memory(error)) throw;
      return false;
    }
    chunks_.push_back({data, nbytes});
    ++allocations_;
    if constexpr (kCudaEmulated) gpu::forbid_access(data, nbytes);
  }
  return true;
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
