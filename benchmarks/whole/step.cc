// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <numeric>

#include "benchmarks/whole/whole.h"
#include "io/safetensors.h"
#include "runtime/cpu.h"
#include "training/cell_sources.h"
#include "training/classification.h"
#include "training/parameter_block.h"

namespace scgraft::whole {
namespace {

std::string folder_file(const Arguments& arguments, const char* name) {
  return arguments.text("folder") + "/" + name;
}

std::vector<int64_t> all_of(const TokenStore& store) {
  std::vector<int64_t> cells(static_cast<size_t>(store.size()));
  std::iota(cells.begin(), cells.end(), 0);
  return cells;
}

}  // namespace

// train() as the program runs it: one step per epoch over all cells of the file. State is what
// training adds per trained parameter: value, gradient and the two moments of the optimizer.
nlohmann::json time_steps(const Arguments& arguments) {
  const auto threads = static_cast<int>(arguments.number("threads", 2));
  const int64_t warmup = arguments.number("warmup", 2), steps = arguments.number("steps", 8);
  require<ConfigError>(steps > 0, "--steps must be at least 1");
  Context ctx(Device::parse(arguments.text("device", "cpu")), {.threads = threads});
  const Cells cells = read_cells_file(folder_file(arguments, "cells.safetensors"));
  Grafted grafted = load_grafted(arguments, cells.classes);
  Backbone& net = *grafted.backbone;
  net.move_to(ctx.device());
  if (grafted.adapter != nullptr) move_to(grafted.adapter->parameters(), ctx.device());
  CellClassification objective(*grafted.network, {});
  ParameterBlock block(grafted.trained, 0.01);
  net.parameters_updated();
  const std::vector<int64_t> numbers = all_of(cells.store);
  LabelledCells source(cells.store, numbers, cells.labels);
  TrainerOptions options;
  options.epochs = warmup + steps;
  options.batch_size = cells.store.size();
  options.chunk_tokens = arguments.number("chunk-tokens", options.chunk_tokens);
  options.schedule = ScheduleKind::constant;
  options.warmup_ratio = 0;
  options.max_grad_norm = 0;
  std::vector<double> seconds, losses;
  TrainerCallbacks callbacks;
  callbacks.on_step = [&](const StepReport& report) {
    losses.push_back(report.loss);
    if (report.step > warmup) seconds.push_back(report.seconds);
  };
  train(
      ctx, objective, source, block, options, [&] { net.parameters_updated(); }, callbacks);
  const int64_t peak = peak_resident_bytes();
  const Work work = step_work(grafted.work, cells.store);
  int64_t weights = 0;
  for (const Parameter* p : net.parameters().all()) weights += p->value.nbytes();
  std::vector<double> sorted = seconds;
  std::ranges::sort(sorted);
  return {{"device", ctx.device().name()},
          {"seconds", seconds},
          {"median_ms", 1e3 * sorted[sorted.size() / 2]},
          {"losses", losses},
          {"cells", cells.store.size()},
          {"tokens", cells.store.tokens()},
          {"peak_rss", peak},
          {"weights_bytes", weights},
          {"trained_parameters", block.numel()},
          {"state_bytes", 4 * block.numel() * int64_t{sizeof(float)}},
          {"activation_bytes", ctx.activations().peak()},
          {"scratch_bytes", ctx.scratch().peak()},
          {"gflop_dense", work.dense},
          {"gflop_needed", work.needed},
          {"peak_gflops_f32", peak_gflops(threads, DType::f32)},
          {"peak_gflops_bf16", cpu_has_bf16() ? peak_gflops(threads, DType::bf16) : 0.0}};
}

// The loss and the gradient of every trained parameter before the first update.
nlohmann::json write_gradients(const Arguments& arguments) {
  Context ctx(Device::cpu(), {.threads = static_cast<int>(arguments.number("threads", 2))});
  const Cells cells = read_cells_file(folder_file(arguments, "cells.safetensors"));
  Grafted grafted = load_grafted(arguments, cells.classes);
  Backbone& net = *grafted.backbone;
  CellClassification objective(*grafted.network, {});
  ParameterBlock block(grafted.trained, 0);
  net.parameters_updated();
  const std::vector<int64_t> numbers = all_of(cells.store);
  LabelledCells source(cells.store, numbers, cells.labels);
  std::vector<CellView> views;
  source.view(numbers, 0, views);
  block.zero_gradients(ctx);
  ObjectiveSums sums;
  TokenBatch batch;
  for_each_chunk(ctx, views, training_micro_batch(ctx, 0).tokens(), batch,
                 [&](const TokenBatch& chunk, size_t, size_t) {
                   objective.run(ctx, chunk, true, 1.0 / objective.weight(views), sums);
                 });
  std::vector<NamedTensor> gradients;
  for (const Parameter* p : grafted.trained) gradients.push_back({p->name, p->grad.view()});
  write_safetensors(arguments.text("out"), std::move(gradients), {}, Overwrite::replace);
  return {{"loss", sums.mean()}};
}

}  // namespace scgraft::whole
