// SPDX-License-Identifier: Apache-2.0
#include "training/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <numeric>

#include "runtime/random.h"

namespace scgraft {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

std::vector<int64_t> shuffled(int64_t n, uint64_t seed, int64_t epoch) {
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  RandomStream stream(seed, RandomUse::shuffle, static_cast<uint32_t>(epoch));
  for (int64_t i = n - 1; i > 0; --i)
    std::swap(order[static_cast<size_t>(i)], order[stream.below(static_cast<uint64_t>(i) + 1)]);
  return order;
}

}  // namespace

void for_each_chunk(Context& ctx, std::span<const CellView> cells, int64_t chunk_tokens,
                    TokenBatch& batch,
                    const std::function<void(const TokenBatch&, size_t, size_t)>& body) {
  for (size_t begin = 0; begin < cells.size();) {
    size_t end = begin;
    int64_t tokens = 0;
    do {
      tokens += static_cast<int64_t>(cells[end++].genes.size());
    } while (end < cells.size() &&
             tokens + static_cast<int64_t>(cells[end].genes.size()) <= chunk_tokens);
    batch.assign(ctx, cells.subspan(begin, end - begin));
    body(batch, begin, end);
    begin = end;
  }
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
                       int64_t chunk_tokens) {
  ObjectiveSums sums;
  TokenBatch batch;
  for_each_group(cells, epoch, [&](std::span<const CellView> views, int64_t) {
    for_each_chunk(ctx, views, chunk_tokens, batch, [&](const TokenBatch& chunk, size_t, size_t) {
      objective.run(ctx, chunk, false, 0.0, sums);
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
  TokenBatch batch;
  ObjectiveSums sums;
  std::vector<CellView> views;
  bool stop = false;
  for (int64_t epoch = 0; epoch < options.epochs && result.steps < total && !stop; ++epoch) {
    const std::vector<int64_t> order = shuffled(cells.size(), options.seed, epoch);
    for (int64_t begin = 0; begin < cells.size() && result.steps < total && !stop;
         begin += per_step) {
      const auto step_start = Clock::now();
      const int64_t count = std::min(per_step, cells.size() - begin);
      cells.view(std::span(order).subspan(static_cast<size_t>(begin), static_cast<size_t>(count)),
                 epoch, views);
      ctx.random() = {options.seed, static_cast<uint32_t>(result.steps)};
      const double weight = objective.weight(views);
      block.zero_gradients(ctx);
      sums.reset();
      if (weight > 0)
        for_each_chunk(ctx, views, options.chunk_tokens, batch,
                       [&](const TokenBatch& chunk, size_t, size_t) {
                         objective.run(ctx, chunk, true, 1.0 / weight, sums);
                       });
      // The one place of a step where the host waits for a device.
      const double norm = block.gradient_norm(ctx);
      sums.settle(ctx);
      const double rate = schedule.at(result.steps);
      if (!std::isfinite(sums.loss) || !std::isfinite(norm)) {
        NumericalError error(cat("the ", std::isfinite(sums.loss) ? "gradient" : "loss",
                                 " of step ", result.steps + 1, " is not finite (loss ",
                                 sums.mean(), ", gradient norm ", norm, ", learning rate ", rate,
                                 ")"));
        error.set_hint("lower train.learning_rate, or look for damaged cells with scgraft inspect");
        throw error;
      }
      block.update(
          ctx,
          {.learning_rate = rate, .max_norm = options.max_grad_norm, .step = result.steps + 1});
      after_update();
      ++result.steps;
      const double seconds = seconds_since(step_start);
      step_seconds.push_back(seconds);
      if (callbacks.on_step)
        callbacks.on_step({.epoch = epoch,
                           .step = result.steps,
                           .total_steps = total,
                           .loss = sums.mean(),
                           .learning_rate = rate,
                           .gradient_norm = norm,
                           .cells = count,
                           .seconds = seconds});
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
