// SPDX-License-Identifier: Apache-2.0
#include "training/batch_loader.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "runtime/random.h"
#include "training/trainer.h"

namespace scgraft {

std::vector<int64_t> shuffled(int64_t n, uint64_t seed, int64_t epoch) {
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  RandomStream stream(seed, RandomUse::shuffle, static_cast<uint32_t>(epoch));
  for (int64_t i = n - 1; i > 0; --i)
    std::swap(order[static_cast<size_t>(i)], order[stream.below(static_cast<uint64_t>(i) + 1)]);
  return order;
}

BatchLoader::BatchLoader(Context& ctx, CellSource& cells, const Objective& objective,
                         const StepPlan& plan, Mode mode)
    : ctx_(ctx), cells_(cells), objective_(objective), plan_(plan), copies_(ctx.device()) {
  for (TokenBatch& batch : batches_) free_.push_back(&batch);
  if (mode == Mode::ahead) thread_ = std::thread([this] { run(); });
}

BatchLoader::~BatchLoader() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void BatchLoader::reserve(int64_t cells, int64_t tokens) {
  for (TokenBatch& batch : batches_) batch.reserve(ctx_, cells, tokens);
}

void BatchLoader::run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(
        lock, [this] { return ending_ || (!seeking_ && !failed_ && !free_.empty() && !at_end()); });
    if (ending_) return;
    TokenBatch* batch = free_.front();
    free_.pop_front();
    packing_ = true;
    lock.unlock();
    Packed packed = pack(*batch);
    lock.lock();
    packing_ = false;
    failed_ = packed.error != nullptr;
    ready_.push_back(std::move(packed));
    changed_.notify_all();
  }
}

BatchLoader::Packed BatchLoader::pack(TokenBatch& batch) {
  Packed packed;
  packed.chunk.batch = &batch;
  try {
    Cursor& c = cursor_;
    if (c.views.empty()) {
      const int64_t n = cells_.size();
      const int64_t steps_per_epoch = (n + plan_.cells_per_step - 1) / plan_.cells_per_step;
      const int64_t epoch = c.step / steps_per_epoch;
      if (epoch != c.epoch) c.order = shuffled(n, plan_.seed, epoch);
      c.epoch = epoch;
      const int64_t begin = c.step % steps_per_epoch * plan_.cells_per_step;
      const auto count = static_cast<size_t>(std::min(plan_.cells_per_step, n - begin));
      cells_.view(std::span(c.order).subspan(static_cast<size_t>(begin), count), epoch, c.views);
      c.next_cell = 0;
      c.weight = objective_.weight(c.views);
      c.lengths = CellLengths(c.views);
    }
    const size_t end = chunk_end(c.views, c.next_cell, chunk_tokens_);
    batch.prepare(ctx_.device(), std::span(c.views).subspan(c.next_cell, end - c.next_cell));
    packed.chunk.weight = c.weight;
    packed.chunk.lengths = c.lengths;
    packed.chunk.last = end == c.views.size();
    c.next_cell = end;
    if (packed.chunk.last) {
      c.views.clear();
      ++c.step;
    }
  } catch (...) {
    packed.error = std::current_exception();
  }
  return packed;
}

void BatchLoader::seek(int64_t step, int64_t chunk_tokens) {
  if (next_step_ == step && at_start_ && chunk_tokens_ == chunk_tokens) return;
  std::unique_lock lock(mutex_);
  seeking_ = true;  // who packs has the cursor
  changed_.wait(lock, [this] { return !packing_; });
  for (const Packed& packed : ready_) free_.push_back(packed.chunk.batch);
  ready_.clear();
  if (in_use_ != nullptr) free_.push_back(std::exchange(in_use_, nullptr));
  next_step_ = step;
  at_start_ = true;
  chunk_tokens_ = chunk_tokens;
  cursor_.step = step;
  cursor_.views.clear();
  seeking_ = failed_ = false;
  changed_.notify_all();
}

BatchLoader::Chunk BatchLoader::next() {
  Packed packed;
  if (thread_.joinable()) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !ready_.empty() || (!packing_ && at_end()); });
    require(!ready_.empty(), "the run has no more steps");
    packed = std::move(ready_.front());
    ready_.pop_front();
  } else {
    require(!at_end(), "the run has no more steps");
    TokenBatch* batch = free_.front();
    free_.pop_front();
    packed = pack(*batch);
  }
  at_start_ = packed.chunk.last;
  if (packed.chunk.last) ++next_step_;
  in_use_ = packed.chunk.batch;
  if (packed.error) {
    at_start_ = false;
    std::rethrow_exception(packed.error);
  }
  in_use_->send(ctx_, copies_);
  return packed.chunk;
}

void BatchLoader::release() {
  in_use_->release(ctx_);
  const std::lock_guard lock(mutex_);
  free_.push_back(std::exchange(in_use_, nullptr));
  changed_.notify_all();
}

}  // namespace scgraft
