// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "runtime/error.h"
#include "runtime/gpu/emulator.h"
#include "runtime/gpu/fiber.h"

// How the emulator runs one block: CUDA threads as fibres of an OS thread, which of them goes on
// when one blocks in a collective, and the mistakes that show in this. emulator.cc deals blocks to
// workers, emulator_primitives.cc has what kernels call.
//
// Files that include this are compiled without -fsanitize=thread: what they read and write on
// behalf of other CUDA threads is no access of a kernel. Real ordering is told to the sanitizer by
// tokens.
#if defined(SCGRAFT_EMULATOR_TSAN)
extern "C" {
void __tsan_acquire(void* token);
void __tsan_release(void* token);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace scgraft::gpu::emulated {

inline constexpr int kMaxThreads = 1024;
inline constexpr int kMaxWarps = kMaxThreads / kWarp;
// Different masks that one warp may use in one block.
inline constexpr int kMasks = 16;
inline constexpr int64_t kArenaBytes = 512 * 1024;
// Device code may rely on this alignment of shared memory, and on no more.
inline constexpr int64_t kSharedAlignment = 128;

// A point of order for the thread sanitizer: what happened before release() is seen after
// acquire().
class Token {
 public:
  void release() {
#if defined(SCGRAFT_EMULATOR_TSAN)
    __tsan_release(&place_);
#endif
  }
  void acquire() {
#if defined(SCGRAFT_EMULATOR_TSAN)
    __tsan_acquire(&place_);
#endif
  }

 private:
  [[maybe_unused]] int64_t place_ = 0;
};

// What lanes exchange in a collective is registers to them, not memory.
class IgnoreAccesses {
 public:
  IgnoreAccesses() {
#if defined(SCGRAFT_EMULATOR_TSAN)
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
#endif
  }
  ~IgnoreAccesses() {
#if defined(SCGRAFT_EMULATOR_TSAN)
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
#endif
  }
  IgnoreAccesses(const IgnoreAccesses&) = delete;
  IgnoreAccesses& operator=(const IgnoreAccesses&) = delete;
};

enum class Kind {
  none,
  sync_block,
  sync_warp,
  shuffle,
  ballot,
  ldmatrix,
  mma_m16n8k16_bf16,
  mma_m16n8k16_f16,
  mma_m16n8k8
};

const char* name_of(Kind kind);
bool same_place(const Site& a, const Site& b);
std::string text_of(const Site& site);

struct CudaThread {
  ThreadInfo info;
  Fiber fiber;
  Kind waits = Kind::none;  // the collective it is blocked in
  Site where;
  std::vector<AsyncCopy> copies;  // issued, in order
  size_t finished_copies = 0;     // of them, from the front
  int64_t groups = 0;             // committed
};

// Lanes of one warp on their way into one collective.
struct Meeting {
  uint32_t mask = 0;
  uint32_t arrived = 0;
  Kind kind = Kind::none;
  Site site;
  void* operands[kWarp] = {};
  // Used in turn: a lane that already waits for the next meeting must not order those that have not
  // left this one.
  Token tokens[2];
  unsigned generation = 0;
};

struct Launch {
  Grid grid;
  int block = 0;
  int64_t shared_bytes = 0;
  Body body = nullptr;
  void* arguments = nullptr;
  Order order = Order::forward;
  int capability = 0;
  std::atomic<bool> stop = false;
};

struct LdmatrixSite {
  Site site;
  int64_t loads = 0;
  int64_t extra_phases = 0;
};

// Runs blocks, one after the other, on the OS thread that calls run_block.
class Worker {
 public:
  Worker() : arena_(static_cast<size_t>(kArenaBytes)) {
    const auto address = reinterpret_cast<uintptr_t>(arena_.data());
    constexpr uintptr_t kTwice = 2 * kSharedAlignment;
    shared_ = arena_.data() + ((kTwice - address % kTwice) + kSharedAlignment);
  }

  void begin(Launch& launch, uint64_t seed);

  // False when something was found: `finding`.
  bool run_block(const Index3& block);

  void run_thread() {
    begun_.acquire();
    if (!call_body()) abandon();
    end_thread();
  }

  void sync_block(const Site& site);

  // Stores the lane's operand; the last lane of `mask` to arrive calls compute(operands) for all.
  template <class Compute>
  void meet(Kind kind, uint32_t mask, void* operand, const Site& site, const Compute& compute) {
    CudaThread& self = *current_;
    const int warp = self.info.warp;
    const uint32_t bit = 1u << self.info.lane;
    if ((mask & bit) == 0) {
      finding = cat(name_of(kind), ": the mask ", std::hex, mask, std::dec,
                    " omits the calling lane, ", describe(self, site));
      abandon();
    }
    if ((mask & ~present_[warp]) != 0) {
      finding = cat(name_of(kind), ": lane ", std::countr_zero(mask & ~present_[warp]),
                    " is named, but the block ends before it, ", describe(self, site));
      abandon();
    }
    if ((mask & ended_lanes_[warp]) != 0) {
      finding = cat(name_of(kind), ": lane ", std::countr_zero(mask & ended_lanes_[warp]),
                    " is named, but has returned, ", describe(self, site));
      abandon();
    }
    Meeting& meeting = meeting_of(warp, mask);
    for (const Meeting& other : meetings_[warp]) {
      if (other.mask == 0) break;
      if (other.arrived == 0) continue;
      // Lanes wait there for the caller, and the caller here for them.
      const bool crossed = (other.mask & bit) != 0 && (other.arrived & mask) != 0;
      if (!crossed || (&other == &meeting && other.kind == kind && same_place(other.site, site)))
        continue;
      finding = cat("a warp in two collectives: ", name_of(kind), " mask ", std::hex, mask,
                    std::dec, ", ", describe(self, site), "; lane ",
                    std::countr_zero(other.arrived), " waits in ", name_of(other.kind), " mask ",
                    std::hex, other.mask, std::dec, " at ", text_of(other.site));
      abandon();
    }
    if (meeting.arrived == 0) {
      meeting.kind = kind;
      meeting.site = site;
    }
    meeting.operands[self.info.lane] = operand;
    meeting.arrived |= bit;
    // The others exchange registers and promise no order of memory.
    Token* token = kind == Kind::sync_warp ? &meeting.tokens[meeting.generation & 1] : nullptr;
    if (token != nullptr) token->release();
    if (meeting.arrived == mask) {
      {
        const IgnoreAccesses ignore;
        compute(meeting.operands);
      }
      meeting.arrived = 0;
      ++meeting.generation;
      make_ready(warp, mask & ~bit);
    } else {
      suspend(kind, site);
    }
    if (token != nullptr) token->acquire();
  }

  bool is_shared(const void* p, int nbytes) const {
    const auto* byte = static_cast<const std::byte*>(p);
    return byte >= shared_ && byte + nbytes <= shared_ + launch_->shared_bytes;
  }

  // "thread (3, 0, 0) of block (0, 0, 0), warp 0, lane 3, at file:line".
  std::string describe(const CudaThread& thread, const Site& site) const;
  std::string text_of_current() const;

  // Ends the block with `finding`. Objects of this frame's callers are not destroyed: let them own
  // nothing.
  [[noreturn]] void abandon();

  void require_capability(int least, const char* what, const Site& site);

  CudaThread& current() { return *current_; }
  std::byte* shared() { return shared_; }

  void add_gap(std::byte* begin, int64_t nbytes);
  int64_t gap_bytes() const {
    int64_t sum = 0;
    for (const auto& gap : gaps_) sum += gap.second;
    return sum;
  }

  LdmatrixSite& ldmatrix_site(const Site& site);

  std::string finding;
  std::vector<LdmatrixSite> ldmatrix_sites;

 private:
  // False, with a finding, when the kernel throws. Exceptions must not cross a switch.
  bool call_body();

  void prepare(const Index3& block);

  // Without the address sanitizer, writes between the arrays are found when the block has ended.
  void check_shared();

  // Each mask keeps its meeting for the whole block: sub-warps meet independently.
  Meeting& meeting_of(int warp, uint32_t mask);

  void make_ready(int warp, uint32_t lanes);

  int choose(uint32_t set);

  // Stays in the current warp while it can. Null when no thread can run.
  CudaThread* next_thread();

  // Returns when make_ready has named the calling thread and its turn has come.
  void suspend(Kind kind, const Site& site);

  [[noreturn]] void fail_deadlock();

  [[noreturn]] void end_thread();

  Launch* launch_ = nullptr;
  Fiber main_;
  std::unique_ptr<CudaThread> threads_[kMaxThreads];
  CudaThread* current_ = nullptr;
  std::vector<std::byte> arena_;
  std::byte* shared_ = nullptr;
  std::vector<std::pair<std::byte*, int64_t>> gaps_;
  // Order the blocks of this worker with each other and with the host, but not the threads of one
  // block, which may run one after the other.
  Token begun_;
  Token ended_threads_;
  // What threads did that were abandoned: the next launch uses their memory.
  Token stopped_;

  // Bit masks of lanes, by warp, and of warps.
  uint32_t ready_[kMaxWarps] = {};
  uint32_t ready_warps_ = 0;
  uint32_t present_[kMaxWarps] = {};
  uint32_t ended_lanes_[kMaxWarps] = {};
  int warps_ = 0;
  int warp_ = 0;  // current
  int ended_ = 0;
  uint64_t random_ = 1;

  int barrier_arrived_ = 0;
  Site barrier_site_;
  ThreadInfo barrier_first_;
  Token barrier_tokens_[2];
  unsigned barrier_generation_ = 0;
  Meeting meetings_[kMaxWarps][kMasks];
};

// That of the calling OS thread, while it runs blocks.
extern constinit thread_local Worker* this_worker;

}  // namespace scgraft::gpu::emulated
