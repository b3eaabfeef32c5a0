// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <source_location>
#include <string>
#include <vector>

#include "runtime/gpu/types.h"

// Runs CUDA kernels on the CPU, one fibre per CUDA thread, one block at a time per worker (an OS
// thread). A thread runs until it blocks in a collective; the last thread to arrive there does the
// work of all. So one warp may run as far ahead of the others as barriers allow, and a missing
// barrier shows: shared memory starts as 0xFF bytes (NaN in f32, f16 and bf16), and so do the
// destinations of asynchronous copies until they are waited for.
//
// Mistakes that the emulator itself finds stop the launch with a DeviceError that names, where the
// mistake has one, thread, file and line. Races and accesses out of bounds are for the thread and
// address sanitizers, which see every access of a kernel as one of its CUDA threads. What no
// emulation shows: speed, registers, approximate instructions, how tensor cores round.
namespace scgraft::gpu {

// Where a kernel calls a primitive.
using Site = std::source_location;

// Order in which threads, warps and blocks that could run do run.
enum class Order { forward, reverse, random };

struct EmulatorReport {
  // Shared-memory traffic of the ldmatrix at one place of the source.
  struct Ldmatrix {
    std::string site;          // file:line
    int64_t loads = 0;         // per warp
    int64_t extra_phases = 0;  // beyond one per matrix, because rows share a bank
  };

  std::string finding;  // what stopped the launch; empty when it ended well
  std::vector<Ldmatrix> ldmatrix;

  int64_t extra_phases() const {
    int64_t sum = 0;
    for (const Ldmatrix& site : ldmatrix) sum += site.extra_phases;
    return sum;
  }
};

struct EmulatorOptions {
  Order order = Order::forward;
  uint64_t seed = 1;  // of Order::random
  // OS threads of a launch. Blocks are dealt to them in turn, and blocks of one worker look ordered
  // to the thread sanitizer: it needs two to see races between blocks.
  int workers = 2;
  // The device: ten times its compute capability, and its limits per block. Below 80 instructions
  // that need 8.0 stop the launch.
  int compute_capability = 86;
  int max_threads = 1024;
  int64_t max_shared = 99 * 1024;  // bytes; what 8.6, 8.9 and 12.0 have
  EmulatorReport last_report;      // of the launch that ended last

  // A device of this compute capability: 75 has 64 KiB of shared memory for a block.
  void become(int capability) {
    compute_capability = capability;
    max_shared = (capability < 80 ? 64 : 99) * 1024;
  }
};

// Options of later launches of the process. Not to be changed while a launch runs.
EmulatorOptions& emulator_options();

// What gpu_emulated.h is made of; kernels do not call it.
namespace emulated {

// Unsigned, as CUDA's.
struct Index3 {
  unsigned x = 0, y = 0, z = 0;
};

struct ThreadInfo {
  Index3 thread, block, block_dim, grid_dim;
  int lane = 0;
  int warp = 0;
};

// The CUDA thread that the calling OS thread executes. Fibres stay on their OS thread.
extern constinit thread_local const ThreadInfo* this_thread;

void sync_block(const Site& site);
void sync_warp(uint32_t mask, const Site& site);
uint32_t shuffle(uint32_t value, int from, const Site& site);
uint32_t shuffle_xor(uint32_t value, int mask, const Site& site);
uint32_t ballot(bool predicate, const Site& site);

// A lane's part in ldmatrix: the row it read for others, the registers it receives.
struct MatrixLoad {
  const void* row;
  uint32_t data[4];
  uint32_t registers[4];
};
void ldmatrix(MatrixLoad& lane, int matrices, bool transposed, const Site& site);

enum class Fragment { m16n8k16_bf16, m16n8k16_f16, m16n8k8_f16 };
void mma(Fragment fragment, float* d, const uint32_t* a, const uint32_t* b, const Site& site);

// One copy of 16 bytes that has been issued and not been waited for.
struct AsyncCopy {
  void* shared;
  const void* global;  // null: zeros
  int64_t group;
};
// Checks addresses and remembers the copy.
void issue_copy(void* shared, const void* global, bool valid, const Site& site);
void commit_copies();
// The oldest copy outside the newest `newest` groups; false when there is none.
bool finish_copy(int newest, AsyncCopy& copy);

void fence();
char* shared_memory();
void mark_shared_gap(char* begin, int64_t nbytes);

// Stops the launch: `p` is not aligned to `nbytes`, or not in shared memory.
[[noreturn]] void fail_alignment(const char* what, const void* p, int nbytes, const Site& site);
void require_shared(const char* what, const void* p, int nbytes, const Site& site);

inline void require_aligned(const char* what, const void* p, int nbytes, const Site& site) {
  if (reinterpret_cast<uintptr_t>(p) % static_cast<uintptr_t>(nbytes) != 0) [[unlikely]]
    fail_alignment(what, p, nbytes, site);
}

// Calls `body(arguments)` as every thread of the grid and returns when all have ended.
// Throws DeviceError when the launch is beyond the limits or a thread did something wrong.
using Body = void (*)(void* arguments);
// `kernel` is for the log of launches alone.
void launch(const void* kernel, Grid grid, int block, int64_t shared_bytes, Body body,
            void* arguments);

}  // namespace emulated
}  // namespace scgraft::gpu
