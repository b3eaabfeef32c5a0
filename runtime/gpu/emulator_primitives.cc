// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>

#include "runtime/dtype.h"
#include "runtime/gpu/emulator_worker.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

// What kernels call, on the worker of the calling thread.
namespace scgraft::gpu::emulated {

void sync_block(const Site& site) { this_worker->sync_block(site); }

void sync_warp(uint32_t mask, const Site& site) {
  this_worker->meet(Kind::sync_warp, mask, nullptr, site, [](void**) {});
}

namespace {

struct Exchange {
  uint32_t value;
  int from;
  uint32_t result;
};

uint32_t exchange(uint32_t value, int from, const Site& site) {
  Worker& worker = *this_worker;
  if (from < 0 || from >= kWarp) {
    worker.finding = cat("shuffle from lane ", from, ", ", worker.describe(worker.current(), site));
    worker.abandon();
  }
  Exchange mine{value, from, 0};
  worker.meet(Kind::shuffle, ~0u, &mine, site, [](void** operands) {
    for (int lane = 0; lane < kWarp; ++lane) {
      auto& to = *static_cast<Exchange*>(operands[lane]);
      to.result = static_cast<const Exchange*>(operands[to.from])->value;
    }
  });
  return mine.result;
}

}  // namespace

uint32_t shuffle(uint32_t value, int from, const Site& site) { return exchange(value, from, site); }

uint32_t shuffle_xor(uint32_t value, int mask, const Site& site) {
  return exchange(value, this_thread->lane ^ mask, site);
}

uint32_t ballot(bool predicate, const Site& site) {
  Exchange mine{predicate ? 1u : 0u, 0, 0};
  this_worker->meet(Kind::ballot, ~0u, &mine, site, [](void** operands) {
    uint32_t votes = 0;
    for (int lane = 0; lane < kWarp; ++lane)
      votes |= static_cast<const Exchange*>(operands[lane])->value << lane;
    for (int lane = 0; lane < kWarp; ++lane) static_cast<Exchange*>(operands[lane])->result = votes;
  });
  return mine.result;
}

namespace {

// The eight rows of a matrix are read at once if they lie in different 16-byte columns of the 128
// bytes that the banks deliver; rows at one address are one read.
template <class RowOf>
int extra_phases(const RowOf& row_of) {
  unsigned columns = 0;
  for (int row = 0; row < 8; ++row)
    columns |= 1u << ((reinterpret_cast<uintptr_t>(row_of(row)) >> 4) & 7);
  if (columns == 0xff) return 0;
  int rows_at[8] = {};
  for (int row = 0; row < 8; ++row) {
    bool repeated = false;
    for (int other = 0; other < row; ++other) repeated |= row_of(other) == row_of(row);
    if (!repeated) ++rows_at[(reinterpret_cast<uintptr_t>(row_of(row)) >> 4) & 7];
  }
  return *std::max_element(rows_at, rows_at + 8) - 1;
}

}  // namespace

void ldmatrix(MatrixLoad& mine, int matrices, bool transposed, const Site& site) {
  Worker& worker = *this_worker;
  worker.meet(Kind::ldmatrix, ~0u, &mine, site, [&](void** operands) {
    const auto lane_of = [&](int lane) -> MatrixLoad& {
      return *static_cast<MatrixLoad*>(operands[lane]);
    };
    LdmatrixSite& count = worker.ldmatrix_site(site);
    ++count.loads;
    for (int m = 0; m < matrices; ++m) {
      uint16_t element[8][8];
      for (int row = 0; row < 8; ++row) std::memcpy(element[row], lane_of(8 * m + row).data, 16);
      count.extra_phases += extra_phases([&](int row) { return lane_of(8 * m + row).row; });
      for (int lane = 0; lane < kWarp; ++lane) {
        const int g = lane / 4;
        const int t = lane % 4;
        const uint32_t low = transposed ? element[2 * t][g] : element[g][2 * t];
        const uint32_t high = transposed ? element[2 * t + 1][g] : element[g][2 * t + 1];
        lane_of(lane).registers[m] = low | high << 16;
      }
    }
  });
}

namespace {

struct Product {
  float* d;
  const uint32_t* a;
  const uint32_t* b;
};

// d [16, 8] += a [16, 8 kSteps] b [8 kSteps, 8], by the tables of gpu.cuh.
template <class T, int kSteps>
void multiply(void** operands) {
  constexpr int kDepth = 8 * kSteps;
  float a[16][kDepth];
  float b[kDepth][8];
  float d[16][8];
  const auto half_of = [](uint32_t pair, int h) {
    T value;
    value.bits = static_cast<uint16_t>(pair >> (16 * h));
    return static_cast<float>(value);
  };
  for (int lane = 0; lane < kWarp; ++lane) {
    const Product& p = *static_cast<const Product*>(operands[lane]);
    const int g = lane / 4;
    const int t = lane % 4;
    for (int h = 0; h < 2; ++h) {
      for (int i = 0; i < 2 * kSteps; ++i)
        a[g + 8 * (i & 1)][2 * t + h + 8 * (i >> 1)] = half_of(p.a[i], h);
      for (int i = 0; i < kSteps; ++i) b[2 * t + h + 8 * i][g] = half_of(p.b[i], h);
    }
    for (int i = 0; i < 4; ++i) d[g + 8 * (i >> 1)][2 * t + (i & 1)] = p.d[i];
  }
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < kDepth; ++k)
      for (int col = 0; col < 8; ++col) d[row][col] += a[row][k] * b[k][col];
  for (int lane = 0; lane < kWarp; ++lane) {
    const Product& p = *static_cast<const Product*>(operands[lane]);
    for (int i = 0; i < 4; ++i) p.d[i] = d[lane / 4 + 8 * (i >> 1)][2 * (lane % 4) + (i & 1)];
  }
}

}  // namespace

void mma(Fragment fragment, float* d, const uint32_t* a, const uint32_t* b, const Site& site) {
  Product mine{d, a, b};
  if (fragment != Fragment::m16n8k8_f16) this_worker->require_capability(80, "mma_m16n8k16", site);
  switch (fragment) {
    case Fragment::m16n8k16_bf16:
      return this_worker->meet(Kind::mma_m16n8k16_bf16, ~0u, &mine, site, multiply<bf16, 2>);
    case Fragment::m16n8k16_f16:
      return this_worker->meet(Kind::mma_m16n8k16_f16, ~0u, &mine, site, multiply<f16, 2>);
    case Fragment::m16n8k8_f16:
      return this_worker->meet(Kind::mma_m16n8k8, ~0u, &mine, site, multiply<f16, 1>);
  }
}

void issue_copy(void* shared, const void* global, bool valid, const Site& site) {
  this_worker->require_capability(80, "cp_async16", site);
  require_aligned("cp_async16: the destination", shared, 16, site);
  require_aligned("cp_async16: the source", global, 16, site);
  require_shared("cp_async16: the destination", shared, 16, site);
  Worker& worker = *this_worker;
  bool readable = global != nullptr;
#if defined(__SANITIZE_ADDRESS__)
  readable = readable && (valid || __asan_address_is_poisoned(global) == 0);
#endif
  if (!readable) {
    worker.finding = cat("cp_async16: the source ", global,
                         " is no valid address, which it must be even for a copy of zeros, ",
                         worker.describe(worker.current(), site));
    worker.abandon();
  }
  CudaThread& self = worker.current();
  self.copies.push_back({shared, valid ? global : nullptr, self.groups});
}

void commit_copies() { ++this_worker->current().groups; }

bool finish_copy(int newest, AsyncCopy& copy) {
  CudaThread& self = this_worker->current();
  if (self.finished_copies == self.copies.size()) {
    self.copies.clear();
    self.finished_copies = 0;
    return false;
  }
  const AsyncCopy& oldest = self.copies[self.finished_copies];
  if (oldest.group >= self.groups - newest) return false;
  copy = oldest;
  ++self.finished_copies;
  return true;
}

void fence() {
  // One for all workers, as it orders the whole device.
  static Token token;
  token.acquire();
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  token.release();
}

char* shared_memory() { return reinterpret_cast<char*>(this_worker->shared()); }

void mark_shared_gap(char* begin, int64_t nbytes) {
  this_worker->add_gap(reinterpret_cast<std::byte*>(begin), nbytes);
}

void fail_alignment(const char* what, const void* p, int nbytes, const Site& site) {
  Worker& worker = *this_worker;
  worker.finding = cat(what, ": address ", p, " is not a multiple of ", nbytes, ", ",
                       worker.describe(worker.current(), site));
  worker.abandon();
}

void require_shared(const char* what, const void* p, int nbytes, const Site& site) {
  Worker& worker = *this_worker;
  if (worker.is_shared(p, nbytes)) return;
  worker.finding = cat(what, ": address ", p, " is not in the block's shared memory, ",
                       worker.describe(worker.current(), site));
  worker.abandon();
}

}  // namespace scgraft::gpu::emulated
