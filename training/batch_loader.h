// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "model/batch.h"
#include "training/micro_batch.h"
#include "training/objective.h"

namespace scgraft {

class CellSource;

// Which cells the steps of a run have: a pure function of these.
struct StepPlan {
  uint64_t seed = 0;
  int64_t cells_per_step = 1;
  int64_t steps = 0;  // of the run
};

// The order of n cells in an epoch, a pure function of (seed, epoch).
std::vector<int64_t> shuffled(int64_t n, uint64_t seed, int64_t epoch);

// Packs the batches of a run, in order, ahead of the work on them. On a CUDA device a thread packs
// the next chunk into pinned memory while the host enqueues the work on this one, and a stream of
// its own copies it there while the device works. On the CPU a chunk is packed when it is asked
// for: all cores are at work already, and one that was asked to use one thread uses one. Either way
// batches are the same.
class BatchLoader {
 public:
  enum class Mode { ahead, on_demand };
  static Mode mode_for(Device device) { return device.is_cpu() ? Mode::on_demand : Mode::ahead; }

  // All must outlive this. From the first seek() on `cells` is used by the loader alone.
  BatchLoader(Context& ctx, CellSource& cells, const Objective& objective, const StepPlan& plan,
              Mode mode);
  ~BatchLoader();
  BatchLoader(const BatchLoader&) = delete;
  BatchLoader& operator=(const BatchLoader&) = delete;

  // Memory on the device for chunks of at most so many cells and tokens.
  void reserve(int64_t cells, int64_t tokens);
  // One of the loader's batches, for use before the first seek().
  TokenBatch& spare() { return batches_[0]; }

  struct Chunk {
    TokenBatch* batch = nullptr;
    bool last = false;    // of its step
    double weight = 0;    // of the step
    CellLengths lengths;  // of the step
  };
  // The next chunk will be the first one of a step, cut into at most so many tokens. Costs nothing
  // when it is so already.
  void seek(int64_t step, int64_t chunk_tokens);
  // The next chunk, on its way to the device of the context. Throws what went wrong while it was
  // packed. At the end of a step goes on with the next.
  Chunk next();
  // After the work on the chunk of next() has been enqueued.
  void release();

 private:
  // Batches: one is worked on, the other packed.
  static constexpr size_t kBatches = 2;
  struct Packed {
    Chunk chunk;
    std::exception_ptr error;
  };
  // Where packing goes on. Only who packs touches it, or seek() when nobody does.
  struct Cursor {
    int64_t step = -1;
    int64_t epoch = -1;  // of `order`
    std::vector<int64_t> order;
    std::vector<CellView> views;  // of the step; empty: not looked at yet
    size_t next_cell = 0;         // of the views
    double weight = 0;
    CellLengths lengths;
  };

  void run();
  Packed pack(TokenBatch& batch);
  bool at_end() const { return cursor_.step < 0 || cursor_.step >= plan_.steps; }

  Context& ctx_;
  CellSource& cells_;
  const Objective& objective_;
  const StepPlan plan_;
  Stream copies_;
  TokenBatch batches_[kBatches];
  TokenBatch* in_use_ = nullptr;
  // What next() gives.
  int64_t next_step_ = -1;
  bool at_start_ = false;  // of that step
  int64_t chunk_tokens_ = 0;

  Cursor cursor_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Packed> ready_;
  std::deque<TokenBatch*> free_;
  bool packing_ = false;
  bool seeking_ = false;  // nothing new is begun
  bool failed_ = false;   // nothing more is packed until seek()
  bool ending_ = false;
  std::thread thread_;
};

}  // namespace scgraft
