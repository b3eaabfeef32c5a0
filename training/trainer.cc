// SPDX-License-Identifier: Apache-2.0
#include "training/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <deque>
#include <exception>
#include <limits>
#include <numeric>
#include <utility>

#include "training/batch_loader.h"
#include "training/precision.h"
#include "training/sent_steps.h"

namespace scgraft {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// What decides how much memory the chunks of a run need.
struct LongestCells {
  std::vector<int64_t> cells;  // as many as fill a chunk or a step
  int64_t longest = 0;         // tokens of a cell
  int64_t step = 0;            // tokens of a step with the longest cells

  int64_t tokens_of_chunk(int64_t chunk_tokens) const {
    return std::max(longest, std::min(step, chunk_tokens));
  }
};

LongestCells longest_cells(CellSource& cells, int64_t per_step, int64_t chunk_tokens) {
  std::vector<std::pair<int64_t, int64_t>> by_length;  // negative, so that they sort first
  for_each_group(cells, 0, [&](std::span<const CellView> views, int64_t begin) {
    for (size_t i = 0; i < views.size(); ++i)
      by_length.emplace_back(-static_cast<int64_t>(views[i].genes.size()),
                             begin + static_cast<int64_t>(i));
  });
  std::sort(by_length.begin(), by_length.end());
  by_length.resize(std::min(by_length.size(), static_cast<size_t>(per_step)));
  LongestCells found;
  found.longest = -by_length.front().first;
  for (const auto& [length, cell] : by_length) {
    found.step -= length;
    if (found.cells.empty() || found.step <= chunk_tokens) found.cells.push_back(cell);
  }
  return found;
}

// Runs the largest chunk there can be before the first step. All memory of a device that steps need
// is then in hand: it does not run out later when others use the device too, and no step allocates.
void rehearse(Context& ctx, Objective& objective, CellSource& cells, int64_t per_step,
              BatchLoader& loader, MicroBatch& micro_batch, ObjectiveSums& sums) {
  const LongestCells longest = longest_cells(cells, per_step, micro_batch.tokens());
  std::vector<CellView> views;
  cells.view(longest.cells, 0, views);
  const double weight = objective.weight(views);
  if (!(weight > 0)) return;
  micro_batch.fit(ctx, views, [&] {
    loader.reserve(per_step, longest.tokens_of_chunk(micro_batch.tokens()));
    sums.reset();
    for_each_chunk(ctx, views, micro_batch.tokens(), loader.spare(),
                   [&](const TokenBatch& chunk, size_t, size_t) {
                     objective.run(ctx, chunk, true, 1.0 / weight, sums);
                   });
    ctx.synchronize();
  });
}

// A step that the device has to do or has done.
struct Step {
  int64_t epoch = 0;
  int64_t index = 0;  // 0-based, of the run
  int64_t begin = 0;  // its first cell in the order of the epoch
  int64_t count = 0;  // cells
  double learning_rate = 0;
  Clock::time_point start;
};

[[noreturn]] void throw_not_finite(const Step& step, const SentSteps::Result& result) {
  const double loss = result.sums.mean();
  NumericalError error(cat("the ", std::isfinite(result.sums.loss) ? "gradient" : "loss",
                           " of step ", step.index + 1, " is not finite (loss ", loss,
                           ", gradient norm ", result.state.norm, ", learning rate ",
                           step.learning_rate, ")"));
  error.set_hint("lower train.learning_rate, or look for damaged cells with scgraft inspect");
  throw error;
}

}  // namespace

MicroBatch training_micro_batch(Context& ctx, int64_t chunk_tokens) {
  if (chunk_tokens > 0) return MicroBatch(chunk_tokens);
  // A CPU's caches hold the activations of few tokens, a GPU wants work for all of it.
  return MicroBatch(ctx.device().is_cpu() ? 2048 : 131072);
}

std::function<bool()> recomputing(Backbone& backbone) {
  return [&backbone, done = false]() mutable {
    backbone.set_recompute(true);
    return !std::exchange(done, true);
  };
}

void for_each_group(CellSource& cells, int64_t epoch,
                    const std::function<void(std::span<const CellView>, int64_t begin)>& body) {
  constexpr int64_t kGroup = 256;
  std::vector<CellView> views;
  std::vector<int64_t> group;
  for (int64_t begin = 0; begin < cells.size(); begin += kGroup) {
    group.resize(static_cast<size_t>(std::min(kGroup, cells.size() - begin)));
    std::iota(group.begin(), group.end(), begin);
    cells.view(group, epoch, views);
    body(views, begin);
  }
}

ObjectiveSums evaluate(Context& ctx, Objective& objective, CellSource& cells, int64_t epoch,
                       MicroBatch& micro_batch) {
  ObjectiveSums sums;
  TokenBatch batch;
  for_each_group(cells, epoch, [&](std::span<const CellView> views, int64_t) {
    const ObjectiveSums::Totals before = sums.totals(ctx);
    micro_batch.fit(ctx, views, [&] {
      sums.reset(before);
      for_each_chunk(ctx, views, micro_batch.tokens(), batch,
                     [&](const TokenBatch& chunk, size_t, size_t) {
                       objective.run(ctx, chunk, false, 0.0, sums);
                     });
    });
  });
  sums.settle(ctx);
  return sums;
}

TrainerResult train(Context& ctx, Objective& objective, CellSource& cells, ParameterBlock& block,
                    const TrainerOptions& options, const std::function<void()>& after_update,
                    const TrainerCallbacks& callbacks) {
  require<ConfigError>(cells.size() > 0, "there are no cells to train on");
  require<ConfigError>(options.batch_size > 0 && options.accumulation > 0,
                       "batch_size and gradient_accumulation_steps must be at least 1");
  const int64_t per_step = options.batch_size * options.accumulation;
  const int64_t steps_per_epoch = (cells.size() + per_step - 1) / per_step;
  int64_t total = steps_per_epoch * options.epochs;
  if (options.max_steps > 0) total = std::min(total, options.max_steps);
  const Schedule schedule({.kind = options.schedule,
                           .learning_rate = options.learning_rate,
                           .warmup_ratio = options.warmup_ratio,
                           .steps_per_epoch = steps_per_epoch},
                          total);

  TrainerResult result;
  std::vector<Tensor> best;
  std::vector<double> step_seconds;
  double best_loss = std::numeric_limits<double>::infinity();
  const auto start = Clock::now();
  ObjectiveSums sums;
  sums.reserve(ctx, 2 * per_step);  // of each cell two losses at most
  block.set_loss_scale(LossScale(options.activations));
  MicroBatch micro_batch = training_micro_batch(ctx, options.chunk_tokens);
  micro_batch.set_last_resort(callbacks.need_less_memory);
  BatchLoader loader(ctx, cells, objective,
                     {.seed = options.seed, .cells_per_step = per_step, .steps = total},
                     BatchLoader::mode_for(ctx.device()));
  if (ctx.device().is_cuda()) rehearse(ctx, objective, cells, per_step, loader, micro_batch, sums);

  // A device works on one step while the host enqueues the next and then looks at what became of
  // the one. Work of the CPU is done when a call returns.
  const size_t ahead = ctx.device().is_cuda() ? 1 : 0;
  SentSteps sent(ctx.device(), static_cast<int64_t>(ahead) + 1);
  std::deque<Step> under_way;
  auto last_report = start;
  const auto enqueue = [&](const Step& step) {
    ctx.random() = {options.seed, static_cast<uint32_t>(step.index)};
    CellLengths lengths;
    micro_batch.fit(ctx, lengths, [&] {
      loader.seek(step.index, micro_batch.tokens());
      block.zero_gradients(ctx);
      sums.reset();
      BatchLoader::Chunk chunk;
      do {
        chunk = loader.next();
        lengths = chunk.lengths;
        if (chunk.weight > 0)
          objective.run(ctx, *chunk.batch, true, {1 / chunk.weight, block.loss_scale()}, sums);
        loader.release();
      } while (!chunk.last);
    });
    block.update(ctx, sums.unsettled(),
                 {.learning_rate = step.learning_rate, .max_norm = options.max_grad_norm});
    sent.send(ctx, block, sums);
    after_update();
  };
  const auto report = [&](const Step& step, const SentSteps::Result& done) {
    ++result.steps;
    const auto now = Clock::now();
    const double seconds =
        std::chrono::duration<double>(now - std::max(step.start, last_report)).count();
    last_report = now;
    step_seconds.push_back(seconds);
    if (callbacks.on_step)
      callbacks.on_step({.epoch = step.epoch,
                         .step = step.index + 1,
                         .total_steps = total,
                         .loss = done.sums.mean(),
                         .learning_rate = step.learning_rate,
                         .gradient_norm = done.state.norm,
                         .loss_scale = done.state.scale_used,
                         .cells = step.count,
                         .seconds = seconds});
  };

  bool stop = false;
  for (int64_t epoch = 0; epoch < options.epochs && result.steps < total && !stop; ++epoch) {
    int64_t begin = 0;
    int64_t next = result.steps;
    for (;;) {
      const bool more = begin < cells.size() && next < total && !stop;
      std::exception_ptr failure;
      if (!more && under_way.empty()) break;
      if (more) {
        const Step step = {.epoch = epoch,
                           .index = next,
                           .begin = begin,
                           .count = std::min(per_step, cells.size() - begin),
                           .learning_rate = schedule.at(next),
                           .start = Clock::now()};
        try {
          enqueue(step);
          under_way.push_back(step);
          begin += step.count;
          ++next;
        } catch (...) {
          failure = std::current_exception();  // of this step; the one before it comes first
        }
      }
      while (under_way.size() > (more && !failure ? ahead : 0)) {
        const Step step = under_way.front();
        under_way.pop_front();
        const SentSteps::Result done = sent.take();
        if (done.state.outcome == StepOutcome::repeat) {
          // With the smaller factor that the device has chosen; what was enqueued behind the step
          // has changed nothing.
          begin = step.begin;
          next = step.index;
          under_way.clear();
          sent.drop();
          block.resume(ctx);
          failure = nullptr;
          break;
        }
        if (done.state.outcome != StepOutcome::updated) {
          ctx.synchronize();
          throw_not_finite(step, done);
        }
        report(step, done);
      }
      if (failure) std::rethrow_exception(failure);
      if (!more) continue;
      if (options.max_seconds > 0 && seconds_since(start) >= options.max_seconds) {
        result.reason = StopReason::time_limit;
        stop = true;
      }
      if (callbacks.stop_requested && callbacks.stop_requested()) {
        result.reason = StopReason::requested;
        stop = true;
      }
    }
    if (!callbacks.validate) continue;
    const double loss = callbacks.validate(epoch);
    if (loss < best_loss) {
      best_loss = loss;
      best = block.snapshot();
      result.best_epoch = epoch;
    } else if (options.early_stopping_patience > 0 &&
               epoch - result.best_epoch >= options.early_stopping_patience && !stop) {
      result.reason = StopReason::early_stopping;
      stop = true;
    }
  }
  if (!best.empty()) {
    block.restore(best);
    after_update();
    result.best_validation = best_loss;
  }
  result.seconds = seconds_since(start);
  if (!step_seconds.empty()) {
    const auto middle = step_seconds.begin() + static_cast<int64_t>(step_seconds.size() / 2);
    std::nth_element(step_seconds.begin(), middle, step_seconds.end());
    result.seconds_per_step = *middle;
  }
  return result;
}

}  // namespace scgraft
