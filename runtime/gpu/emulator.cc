// SPDX-License-Identifier: Apache-2.0
#include "runtime/gpu/emulator.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <thread>
#include <utility>

#include "runtime/dtype.h"
#include "runtime/error.h"
#include "runtime/gpu/fiber.h"
#include "runtime/gpu/launch_log_emulated.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

// This file is compiled without -fsanitize=thread: what it reads and writes on behalf of other
// CUDA threads is no access of a kernel. Real ordering is told to the sanitizer by tokens.
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

namespace scgraft::gpu {

EmulatorOptions& emulator_options() {
  static EmulatorOptions options;
  return options;
}

namespace emulated {

constinit thread_local const ThreadInfo* this_thread = nullptr;

namespace {

constexpr int kMaxThreads = 1024;
constexpr int kMaxWarps = kMaxThreads / kWarp;
// Different masks that one warp may use in one block.
constexpr int kMasks = 16;
constexpr int64_t kArenaBytes = 512 * 1024;
// Device code may rely on this alignment of shared memory, and on no more.
constexpr int64_t kSharedAlignment = 128;

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

const char* name_of(Kind kind) {
  constexpr const char* kNames[] = {
      "nothing",  "sync_block",         "sync_warp",         "shuffle",    "ballot",
      "ldmatrix", "mma_m16n8k16<bf16>", "mma_m16n8k16<f16>", "mma_m16n8k8"};
  return kNames[static_cast<int>(kind)];
}

bool same_place(const Site& a, const Site& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         (a.file_name() == b.file_name() || std::strcmp(a.file_name(), b.file_name()) == 0);
}

std::string text_of(const Site& site) { return cat(site.file_name(), ":", site.line()); }

std::string text_of(const Index3& i) { return cat("(", i.x, ", ", i.y, ", ", i.z, ")"); }

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

void thread_main();

// Runs blocks, one after the other, on the OS thread that calls run_block.
class Worker {
 public:
  Worker() : arena_(static_cast<size_t>(kArenaBytes)) {
    const auto address = reinterpret_cast<uintptr_t>(arena_.data());
    constexpr uintptr_t kTwice = 2 * kSharedAlignment;
    shared_ = arena_.data() + ((kTwice - address % kTwice) + kSharedAlignment);
  }

  void begin(Launch& launch, uint64_t seed) {
    launch_ = &launch;
    random_ = seed * 0x9e3779b97f4a7c15u + 1;
    finding.clear();
    ldmatrix_sites.clear();
    gaps_.clear();
  }

  // False when something was found: `finding`.
  bool run_block(const Index3& block) {
    prepare(block);
    begun_.release();
    CudaThread* first = next_thread();
    current_ = first;
    this_thread = &first->info;
    Fiber::switch_to(main_, first->fiber);
    this_thread = nullptr;
    ended_threads_.acquire();
    if (finding.empty())
      check_shared();
    else
      stopped_.acquire();
    return finding.empty();
  }

  void run_thread() {
    begun_.acquire();
    if (!call_body()) abandon();
    end_thread();
  }

  void sync_block(const Site& site) {
    CudaThread& self = *current_;
    if (ended_ > 0) {
      finding =
          cat(ended_, " of ", launch_->block,
              " threads of the block returned before this sync_block, ", describe(self, site));
      abandon();
    }
    if (barrier_arrived_ == 0) {
      barrier_site_ = site;
      barrier_first_ = self.info;
    } else if (!same_place(barrier_site_, site)) {
      finding = cat("divergent sync_block: ", describe(self, site), "; thread ",
                    text_of(barrier_first_.thread), " waits at ", text_of(barrier_site_));
      abandon();
    }
    Token& token = barrier_tokens_[barrier_generation_ & 1];
    token.release();
    if (++barrier_arrived_ == launch_->block) {
      barrier_arrived_ = 0;
      ++barrier_generation_;
      for (int warp = 0; warp < warps_; ++warp) make_ready(warp, present_[warp]);
      ready_[self.info.warp] &= ~(1u << self.info.lane);
      if (ready_[self.info.warp] == 0) ready_warps_ &= ~(1u << self.info.warp);
    } else {
      suspend(Kind::sync_block, site);
    }
    token.acquire();
  }

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
  std::string describe(const CudaThread& thread, const Site& site) const {
    return cat("thread ", text_of(thread.info.thread), " of block ", text_of(thread.info.block),
               ", warp ", thread.info.warp, ", lane ", thread.info.lane, ", at ", text_of(site));
  }
  std::string text_of_current() const {
    return cat("thread ", text_of(current_->info.thread), " of block ",
               text_of(current_->info.block));
  }

  // Ends the block with `finding`. Objects of this frame's callers are not destroyed: let them own
  // nothing.
  [[noreturn]] void abandon() {
    stopped_.release();
    Fiber::abandon(current_->fiber, main_);
  }

  void require_capability(int least, const char* what, const Site& site) {
    if (launch_->capability >= least) return;
    finding = cat(what, " needs compute capability ", least / 10, ".", least % 10,
                  ", the device has ", launch_->capability / 10, ".", launch_->capability % 10,
                  ", ", describe(*current_, site));
    abandon();
  }

  CudaThread& current() { return *current_; }
  std::byte* shared() { return shared_; }

  void add_gap(std::byte* begin, int64_t nbytes) {
    for (const auto& gap : gaps_)
      if (gap.first == begin) return;
    gaps_.emplace_back(begin, nbytes);
#if defined(__SANITIZE_ADDRESS__)
    __asan_poison_memory_region(begin, static_cast<size_t>(nbytes));
#endif
  }
  int64_t gap_bytes() const {
    int64_t sum = 0;
    for (const auto& gap : gaps_) sum += gap.second;
    return sum;
  }

  LdmatrixSite& ldmatrix_site(const Site& site) {
    for (LdmatrixSite& known : ldmatrix_sites)
      if (same_place(known.site, site)) return known;
    return ldmatrix_sites.emplace_back(LdmatrixSite{site});
  }

  std::string finding;
  std::vector<LdmatrixSite> ldmatrix_sites;

 private:
  // False, with a finding, when the kernel throws. Exceptions must not cross a switch.
  bool call_body() {
    try {
      launch_->body(launch_->arguments);
      return true;
    } catch (const std::exception& e) {
      finding = cat("the kernel threw \"", e.what(), "\", ", text_of_current());
      return false;
    }
  }

  void prepare(const Index3& block) {
    main_.adopt_thread();
    const int n = launch_->block;
    warps_ = (n + kWarp - 1) / kWarp;
    ended_ = 0;
    barrier_arrived_ = 0;
    ready_warps_ = 0;
    warp_ = 0;
    gaps_.clear();
    const Index3 block_dim{static_cast<unsigned>(n), 1, 1};
    const Index3 grid_dim{static_cast<unsigned>(launch_->grid.x),
                          static_cast<unsigned>(launch_->grid.y),
                          static_cast<unsigned>(launch_->grid.z)};
    for (int i = 0; i < n; ++i) {
      if (!threads_[i]) threads_[i] = std::make_unique<CudaThread>();
      CudaThread& thread = *threads_[i];
      thread.info = {
          {static_cast<unsigned>(i), 0, 0}, block, block_dim, grid_dim, i % kWarp, i / kWarp};
      thread.waits = Kind::none;
      thread.copies.clear();
      thread.finished_copies = 0;
      thread.groups = 0;
      thread.fiber.start(thread_main);
    }
    for (int warp = 0; warp < warps_; ++warp) {
      const int lanes = std::min(kWarp, n - warp * kWarp);
      present_[warp] = lanes == kWarp ? ~0u : (1u << lanes) - 1;
      ended_lanes_[warp] = 0;
      ready_[warp] = 0;
      make_ready(warp, present_[warp]);
      for (Meeting& meeting : meetings_[warp]) meeting.mask = meeting.arrived = 0;
    }
    if (launch_->order == Order::reverse) warp_ = warps_ - 1;
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(arena_.data(), arena_.size());
#endif
    std::memset(shared_, 0xff, static_cast<size_t>(launch_->shared_bytes));
#if defined(__SANITIZE_ADDRESS__)
    std::byte* end = shared_ + launch_->shared_bytes;
    __asan_poison_memory_region(end, static_cast<size_t>(arena_.data() + arena_.size() - end));
    __asan_poison_memory_region(arena_.data(), static_cast<size_t>(shared_ - arena_.data()));
#endif
  }

  // Without the address sanitizer, writes between the arrays are found when the block has ended.
  void check_shared() {
#if !defined(__SANITIZE_ADDRESS__)
    for (const auto& [begin, nbytes] : gaps_)
      for (int64_t i = 0; i < nbytes; ++i)
        if (begin[i] != std::byte{0xff}) {
          finding = cat("block ", text_of(current_->info.block), " wrote shared memory ", i,
                        " bytes behind the array that ends at byte ", begin - shared_);
          return;
        }
#endif
  }

  // Each mask keeps its meeting for the whole block: sub-warps meet independently.
  Meeting& meeting_of(int warp, uint32_t mask) {
    for (Meeting& meeting : meetings_[warp]) {
      if (meeting.mask == 0) meeting.mask = mask;
      if (meeting.mask == mask) return meeting;
    }
    finding = cat("more than ", kMasks, " different masks in one warp, ", text_of_current());
    abandon();
  }

  void make_ready(int warp, uint32_t lanes) {
    if (lanes == 0) return;
    ready_[warp] |= lanes;
    ready_warps_ |= 1u << warp;
  }

  int choose(uint32_t set) {
    switch (launch_->order) {
      case Order::forward:
        return std::countr_zero(set);
      case Order::reverse:
        return 31 - std::countl_zero(set);
      case Order::random:
        break;
    }
    random_ ^= random_ << 13;
    random_ ^= random_ >> 7;
    random_ ^= random_ << 17;
    for (auto skip = static_cast<int>((random_ >> 32) % static_cast<unsigned>(std::popcount(set)));
         skip > 0; --skip)
      set &= set - 1;
    return std::countr_zero(set);
  }

  // Stays in the current warp while it can. Null when no thread can run.
  CudaThread* next_thread() {
    if (ready_[warp_] == 0) {
      if (ready_warps_ == 0) return nullptr;
      warp_ = choose(ready_warps_);
    }
    const int lane = choose(ready_[warp_]);
    ready_[warp_] &= ~(1u << lane);
    if (ready_[warp_] == 0) ready_warps_ &= ~(1u << warp_);
    return threads_[warp_ * kWarp + lane].get();
  }

  // Returns when make_ready has named the calling thread and its turn has come.
  void suspend(Kind kind, const Site& site) {
    CudaThread& self = *current_;
    self.waits = kind;
    self.where = site;
    stopped_.release();
    CudaThread* next = next_thread();
    if (next == nullptr) fail_deadlock();
    current_ = next;
    this_thread = &next->info;
    Fiber::switch_to(self.fiber, next->fiber);
    self.waits = Kind::none;
  }

  [[noreturn]] void fail_deadlock() {
    // Threads that wait at the same place are one line.
    struct Waiting {
      const CudaThread* first;
      int count;
    };
    {
      std::vector<Waiting> places;
      for (int i = 0; i < launch_->block; ++i) {
        const CudaThread& thread = *threads_[i];
        if (thread.waits == Kind::none) continue;
        auto place = std::find_if(places.begin(), places.end(), [&](const Waiting& w) {
          return w.first->waits == thread.waits && same_place(w.first->where, thread.where);
        });
        if (place == places.end())
          places.push_back({&thread, 1});
        else
          ++place->count;
      }
      finding = cat("deadlock: no thread of the block can go on; ", ended_, " have returned");
      for (const Waiting& w : places)
        finding += cat("; ", w.count, " wait in ", name_of(w.first->waits), ", the first is ",
                       describe(*w.first, w.first->where));
    }
    abandon();
  }

  [[noreturn]] void end_thread() {
    CudaThread& self = *current_;
    const int warp = self.info.warp;
    const uint32_t bit = 1u << self.info.lane;
    if (self.finished_copies < self.copies.size()) {
      finding = cat(self.copies.size() - self.finished_copies,
                    " asynchronous copies were not waited for when the thread returned, ",
                    text_of_current());
      abandon();
    }
    if (barrier_arrived_ > 0) {
      finding = cat(text_of_current(), " returned while thread ", text_of(barrier_first_.thread),
                    " waits for it in sync_block at ", text_of(barrier_site_));
      abandon();
    }
    for (const Meeting& meeting : meetings_[warp])
      if (meeting.arrived != 0 && (meeting.mask & bit) != 0) {
        finding = cat(text_of_current(), " returned while lane ", std::countr_zero(meeting.arrived),
                      " waits for it in ", name_of(meeting.kind), " at ", text_of(meeting.site));
        abandon();
      }
    ended_lanes_[warp] |= bit;
    ++ended_;
    ended_threads_.release();
    CudaThread* next = next_thread();
    if (next == nullptr && ended_ < launch_->block) fail_deadlock();
    if (next == nullptr) Fiber::leave(self.fiber, main_);
    current_ = next;
    this_thread = &next->info;
    Fiber::leave(self.fiber, next->fiber);
  }

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

thread_local Worker* this_worker = nullptr;

void thread_main() {
  Fiber::entered();
  this_worker->run_thread();
}

// Workers that no launch uses: stacks are kept for the next one.
class Pool {
 public:
  std::unique_ptr<Worker> take() {
    const std::scoped_lock lock(mutex_);
    if (idle_.empty()) return std::make_unique<Worker>();
    std::unique_ptr<Worker> worker = std::move(idle_.back());
    idle_.pop_back();
    return worker;
  }
  void give_back(std::unique_ptr<Worker> worker) {
    const std::scoped_lock lock(mutex_);
    idle_.push_back(std::move(worker));
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Worker>> idle_;
};

Pool& pool() {
  // Never destroyed: kernels may run while the process ends.
  static Pool& instance = *new Pool;
  return instance;
}

void check_limits(const EmulatorOptions& options, Grid grid, int block, int64_t shared_bytes) {
  require<DeviceError>(grid.x > 0 && grid.x <= 0x7fffffff && grid.y > 0 && grid.y <= 65535 &&
                           grid.z > 0 && grid.z <= 65535,
                       "launch: a grid of ", grid.x, " x ", grid.y, " x ", grid.z,
                       " blocks; at most 2147483647 x 65535 x 65535 are possible");
  require<DeviceError>(block > 0 && block <= std::min(options.max_threads, kMaxThreads),
                       "launch: a block of ", block, " threads; at most ", options.max_threads,
                       " are possible");
  // Gaps between arrays count in shared_bytes, but not towards the limit, and are known only to the
  // kernel: it is asked after its first block.
  require<DeviceError>(shared_bytes >= 0 && shared_bytes <= kArenaBytes / 2,
                       "launch: ", shared_bytes, " bytes of shared memory; at most ",
                       options.max_shared, " are possible");
}

// A random order of `blocks` blocks.
std::vector<int64_t> shuffled(uint64_t seed, int64_t blocks) {
  std::vector<int64_t> positions(static_cast<size_t>(blocks));
  std::iota(positions.begin(), positions.end(), int64_t{0});
  uint64_t state = seed;
  for (size_t i = positions.size(); i > 1; --i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    std::swap(positions[i - 1], positions[(state >> 33) % i]);
  }
  return positions;
}

}  // namespace

void launch(const void* kernel, Grid grid, int block, int64_t shared_bytes, Body body,
            void* arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  const Order order = emulator_options().order;
  const uint64_t seed = emulator_options().seed;
  const int64_t max_shared = emulator_options().max_shared;
  check_limits(emulator_options(), grid, block, shared_bytes);

  Launch launch;
  launch.grid = grid;
  launch.block = block;
  launch.shared_bytes = shared_bytes;
  launch.body = body;
  launch.arguments = arguments;
  launch.order = order;
  launch.capability = emulator_options().compute_capability;
  const int64_t blocks = grid.x * grid.y * grid.z;
  std::vector<int64_t> positions;
  if (order == Order::random) positions = shuffled(seed, blocks);
  const auto n_workers =
      std::clamp<int64_t>(emulator_options().workers, 1, std::min<int64_t>(blocks, 64));
  std::vector<std::unique_ptr<Worker>> workers;
  for (int64_t i = 0; i < n_workers; ++i) workers.push_back(pool().take());

  std::vector<int64_t> gaps(static_cast<size_t>(n_workers), 0);  // bytes, by worker

  // Blocks are dealt in turn, so that which worker runs which block does not depend on time.
  const auto work = [&](int64_t w) {
    Worker& worker = *workers[static_cast<size_t>(w)];
    this_worker = &worker;
    worker.begin(launch, seed + static_cast<uint64_t>(w));
    try {
      for (int64_t i = w; i < blocks && !launch.stop; i += n_workers) {
        int64_t b = order == Order::reverse ? blocks - 1 - i : i;
        if (order == Order::random) b = positions[static_cast<size_t>(i)];
        const Index3 index{static_cast<unsigned>(b % grid.x),
                           static_cast<unsigned>(b / grid.x % grid.y),
                           static_cast<unsigned>(b / grid.x / grid.y)};
        if (!worker.run_block(index)) launch.stop = true;
        // Blocks that return at once know of no gaps.
        int64_t& known_gaps = gaps[static_cast<size_t>(w)];
        known_gaps = std::max(known_gaps, worker.gap_bytes());
      }
    } catch (const std::exception& e) {
      worker.finding = e.what();
      launch.stop = true;
    }
    this_worker = nullptr;
  };
  std::vector<std::thread> threads;
  for (int64_t w = 1; w < n_workers; ++w) threads.emplace_back(work, w);
  work(0);
  for (std::thread& thread : threads) thread.join();
  const int64_t used = shared_bytes - *std::max_element(gaps.begin(), gaps.end());
  log_launch(kernel, block, used);

  EmulatorReport report;
  std::map<std::string, EmulatorReport::Ldmatrix> sites;
  for (std::unique_ptr<Worker>& worker : workers) {
    if (report.finding.empty()) report.finding = worker->finding;
    for (const LdmatrixSite& site : worker->ldmatrix_sites) {
      EmulatorReport::Ldmatrix& sum = sites[text_of(site.site)];
      sum.loads += site.loads;
      sum.extra_phases += site.extra_phases;
    }
    pool().give_back(std::move(worker));
  }
  for (auto& [name, sum] : sites) {
    sum.site = name;
    report.ldmatrix.push_back(sum);
  }
  if (report.finding.empty() && used > max_shared)
    report.finding =
        cat("launch: ", used, " bytes of shared memory; at most ", max_shared, " are possible");
  const std::string finding = report.finding;
  static std::mutex report_mutex;
  {
    const std::scoped_lock lock(report_mutex);
    emulator_options().last_report = std::move(report);
  }
  require<DeviceError>(finding.empty(), "emulator: ", finding);
}

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

}  // namespace emulated
}  // namespace scgraft::gpu
