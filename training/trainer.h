// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <functional>
#include <span>
#include <vector>

#include "model/backbone.h"
#include "training/micro_batch.h"
#include "training/objective.h"
#include "training/parameter_block.h"
#include "training/schedule.h"

namespace scgraft {

// The cells of a run, by number. Views stay valid until the next call. In a training on a CUDA
// device another thread than that of train() asks for them.
class CellSource {
 public:
  virtual ~CellSource() = default;
  virtual int64_t size() const = 0;
  // What the cells look like in an epoch (masks are drawn anew); replaces `views`.
  virtual void view(std::span<const int64_t> cells, int64_t epoch,
                    std::vector<CellView>& views) = 0;
};

struct TrainerOptions {
  int64_t epochs = 10;
  int64_t max_steps = 0;     // 0: as many as the epochs have
  int64_t batch_size = 32;   // cells of a micro batch
  int64_t accumulation = 1;  // micro batches of a step
  // Tokens worked on at once: bounds memory, and becomes less where that is short. Changes no bit
  // of the result, except where the gene or value encoder is trained: their gradients are summed
  // within a chunk first (decision 0010). 0: as many as suit the device.
  int64_t chunk_tokens = 0;
  ScheduleKind schedule = ScheduleKind::cosine;
  double learning_rate = 1e-4;
  double warmup_ratio = 0.05;
  double weight_decay = 0.01;
  double max_grad_norm = 1.0;
  int64_t early_stopping_patience = 0;  // epochs without a better validation loss; 0: never
  double max_seconds = 0;               // stop after this time; 0: never
  DType activations = DType::f32;       // f16 needs a scaled loss
  uint64_t seed = 0;
};

// chunk_tokens: as in TrainerOptions.
MicroBatch training_micro_batch(Context& ctx, int64_t chunk_tokens);

// One optimizer step, as it is reported.
struct StepReport {
  int64_t epoch = 0;
  int64_t step = 0;  // 1-based
  int64_t total_steps = 0;
  double loss = 0;  // mean over the step
  double learning_rate = 0;
  double gradient_norm = 0;
  double loss_scale = 1;  // factor on the gradient while it was computed
  int64_t cells = 0;      // of this step
  double seconds = 0;     // of this step; on a device since the step before it was done
};

struct TrainerCallbacks {
  std::function<void(const StepReport&)> on_step;
  // After an epoch: the validation loss, lower is better. Without it the last values are kept.
  std::function<double(int64_t epoch)> validate;
  std::function<bool()> stop_requested;
  // When there is not enough memory for a single cell: MicroBatch::set_last_resort().
  std::function<bool()> need_less_memory;
};

// For TrainerCallbacks::need_less_memory: layers that are computed again, for once.
std::function<bool()> recomputing(Backbone& backbone);

enum class StopReason { finished, early_stopping, time_limit, requested };

struct TrainerResult {
  StopReason reason = StopReason::finished;
  int64_t steps = 0;
  int64_t best_epoch = -1;  // -1 without validation
  double best_validation = 0;
  double seconds = 0;
  double seconds_per_step = 0;  // median
};

// Calls body(views, begin) for the cells of a source in order, in groups that bound memory.
void for_each_group(CellSource& cells, int64_t epoch,
                    const std::function<void(std::span<const CellView>, int64_t begin)>& body);

// Mean of an objective over all cells of a source, without gradients, in order.
ObjectiveSums evaluate(Context& ctx, Objective& objective, CellSource& cells, int64_t epoch,
                       MicroBatch& micro_batch);

// Minimises an objective over the parameters of `block` with AdamW. The order of cells is a pure
// function of (seed, epoch); after the run the parameters are those of the best validation loss.
// after_update: called after each change of parameters (packed copies are made again).
// On a CUDA device all memory of the steps is reserved before the first one, and the host does not
// wait between two steps of an epoch: it reports a step while the device works on the next
// (decision 0019).
// Throws NumericalError when a loss or a gradient is not finite; the parameters are then those of
// the last good step.
TrainerResult train(Context& ctx, Objective& objective, CellSource& cells, ParameterBlock& block,
                    const TrainerOptions& options, const std::function<void()>& after_update,
                    const TrainerCallbacks& callbacks);

}  // namespace scgraft
