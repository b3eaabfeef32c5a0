// SPDX-License-Identifier: Apache-2.0
#include "runtime/gpu/emulator_worker.h"

#include <algorithm>
#include <exception>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace scgraft::gpu::emulated {

constinit thread_local const ThreadInfo* this_thread = nullptr;
constinit thread_local Worker* this_worker = nullptr;

namespace {

std::string text_of(const Index3& i) { return cat("(", i.x, ", ", i.y, ", ", i.z, ")"); }

void thread_main() {
  Fiber::entered();
  this_worker->run_thread();
}

}  // namespace

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

void Worker::begin(Launch& launch, uint64_t seed) {
  launch_ = &launch;
  random_ = seed * 0x9e3779b97f4a7c15u + 1;
  finding.clear();
  ldmatrix_sites.clear();
  gaps_.clear();
}

bool Worker::run_block(const Index3& block) {
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

void Worker::sync_block(const Site& site) {
  CudaThread& self = *current_;
  if (ended_ > 0) {
    finding = cat(ended_, " of ", launch_->block,
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

std::string Worker::describe(const CudaThread& thread, const Site& site) const {
  return cat("thread ", text_of(thread.info.thread), " of block ", text_of(thread.info.block),
             ", warp ", thread.info.warp, ", lane ", thread.info.lane, ", at ", text_of(site));
}

std::string Worker::text_of_current() const {
  return cat("thread ", text_of(current_->info.thread), " of block ",
             text_of(current_->info.block));
}

void Worker::abandon() {
  stopped_.release();
  Fiber::abandon(current_->fiber, main_);
}

void Worker::require_capability(int least, const char* what, const Site& site) {
  if (launch_->capability >= least) return;
  finding =
      cat(what, " needs compute capability ", least / 10, ".", least % 10, ", the device has ",
          launch_->capability / 10, ".", launch_->capability % 10, ", ", describe(*current_, site));
  abandon();
}

void Worker::add_gap(std::byte* begin, int64_t nbytes) {
  for (const auto& gap : gaps_)
    if (gap.first == begin) return;
  gaps_.emplace_back(begin, nbytes);
#if defined(__SANITIZE_ADDRESS__)
  __asan_poison_memory_region(begin, static_cast<size_t>(nbytes));
#endif
}

LdmatrixSite& Worker::ldmatrix_site(const Site& site) {
  for (LdmatrixSite& known : ldmatrix_sites)
    if (same_place(known.site, site)) return known;
  return ldmatrix_sites.emplace_back(LdmatrixSite{site});
}

bool Worker::call_body() {
  try {
    launch_->body(launch_->arguments);
    return true;
  } catch (const std::exception& e) {
    finding = cat("the kernel threw \"", e.what(), "\", ", text_of_current());
    return false;
  }
}

void Worker::prepare(const Index3& block) {
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

void Worker::check_shared() {
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

Meeting& Worker::meeting_of(int warp, uint32_t mask) {
  for (Meeting& meeting : meetings_[warp]) {
    if (meeting.mask == 0) meeting.mask = mask;
    if (meeting.mask == mask) return meeting;
  }
  finding = cat("more than ", kMasks, " different masks in one warp, ", text_of_current());
  abandon();
}

void Worker::make_ready(int warp, uint32_t lanes) {
  if (lanes == 0) return;
  ready_[warp] |= lanes;
  ready_warps_ |= 1u << warp;
}

int Worker::choose(uint32_t set) {
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

CudaThread* Worker::next_thread() {
  if (ready_[warp_] == 0) {
    if (ready_warps_ == 0) return nullptr;
    warp_ = choose(ready_warps_);
  }
  const int lane = choose(ready_[warp_]);
  ready_[warp_] &= ~(1u << lane);
  if (ready_[warp_] == 0) ready_warps_ &= ~(1u << warp_);
  return threads_[warp_ * kWarp + lane].get();
}

void Worker::suspend(Kind kind, const Site& site) {
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

void Worker::fail_deadlock() {
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

void Worker::end_thread() {
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

}  // namespace scgraft::gpu::emulated
