// SPDX-License-Identifier: Apache-2.0
#include "training/trainer.h"

#include <cmath>
#include <limits>
#include <map>

#include "runtime/log.h"
#include "tests/training/tiny_cells.h"
#include "training/cell_sources.h"
#include "training/classification.h"

namespace scgraft {
namespace {

constexpr int64_t kCells = 24;

// Counts how often each cell is shown in each epoch.
class CountingCells : public LabelledCells {
 public:
  using LabelledCells::LabelledCells;
  void view(std::span<const int64_t> cells, int64_t epoch, std::vector<CellView>& views) override {
    LabelledCells::view(cells, epoch, views);
    for (const CellView& v : views) ++shown[epoch][v.cell];
    for (const CellView& v : views) order[epoch].push_back(v.cell);
  }
  std::map<int64_t, std::map<int64_t, int>> shown;
  std::map<int64_t, std::vector<int64_t>> order;
};

enum class What { head, encoder };

// One training of the tiny network from the same start.
struct Training {
  explicit Training(What what = What::head, int threads = 1, int64_t memory_limit = 0)
      : ctx(Device::cpu(), {.threads = threads, .memory_limit = memory_limit}) {
    parameters = net.classifier()->parameters();
    if (what == What::encoder)
      for (Parameter* p : net.encoder_parameters()) parameters.push_back(p);
    options.learning_rate = 0.01;
    options.batch_size = 8;
    options.epochs = 4;
    callbacks.on_step = [this](const StepReport& r) {
      reports.push_back(r);
      if (on_step) on_step(r);
    };
  }
  void go() {
    ParameterBlock block(parameters, 0.01);
    net.parameters_updated();
    result = train(
        ctx, objective, cells, block, options, [this] { net.parameters_updated(); }, callbacks);
  }
  std::vector<Tensor> values() const { return values_of_all(parameters); }

  Context ctx;
  TokenStore store = tiny_store(kCells);
  std::vector<int64_t> all = numbers(kCells);
  std::vector<int32_t> labels = tiny_labels(kCells);
  ScgptNetwork net = tiny_net();
  ScgptCells network{net};
  CellClassification objective{network, {}};
  CountingCells cells{store, all, labels};
  std::vector<Parameter*> parameters;
  TrainerOptions options;
  TrainerCallbacks callbacks;
  std::function<void(const StepReport&)> on_step;
  std::vector<StepReport> reports;
  TrainerResult result;
};

TEST(Trainer, LowersTheLossAndReportsEveryStep) {
  Training run(What::encoder);
  run.options.epochs = 10;
  run.go();
  ASSERT_EQ(run.reports.size(), 30U);
  EXPECT_EQ(run.result.reason, StopReason::finished);
  EXPECT_EQ(run.result.steps, 30);
  EXPECT_LT(run.reports.back().loss, 0.5 * run.reports.front().loss);
  for (size_t i = 0; i < run.reports.size(); ++i) {
    EXPECT_EQ(run.reports[i].step, static_cast<int64_t>(i) + 1);
    EXPECT_EQ(run.reports[i].epoch, static_cast<int64_t>(i) / 3);
    EXPECT_EQ(run.reports[i].total_steps, 30);
    EXPECT_EQ(run.reports[i].cells, 8);
    EXPECT_GT(run.reports[i].gradient_norm, 0);
  }
}

TEST(Trainer, ShowsEveryCellOncePerEpochInANewOrder) {
  Training run;
  run.options.batch_size = 5;  // the last step of an epoch is smaller
  run.go();
  ASSERT_EQ(run.cells.shown.size(), 4U);
  for (const auto& [epoch, shown] : run.cells.shown) {
    EXPECT_EQ(shown.size(), static_cast<size_t>(kCells));
    for (const auto& [cell, times] : shown) EXPECT_EQ(times, 1) << cell;
  }
  EXPECT_NE(run.cells.order[0], run.cells.order[1]);
  EXPECT_EQ(run.reports[4].cells, 4);
}

TEST(Trainer, TheSameSeedGivesTheSameBits) {
  Training first(What::encoder), second(What::encoder), other(What::encoder);
  other.options.seed = 1;
  for (Training* run : {&first, &second, &other}) run->go();
  expect_same_values(second.values(), first.values());
  EXPECT_NE(values_of(other.values()[0].view()), values_of(first.values()[0].view()));
}

TEST(Trainer, ThreadsChangeNoBit) {
  Training one(What::encoder, 1), three(What::encoder, 3);
  for (Training* run : {&one, &three}) run->go();
  expect_same_values(three.values(), one.values());
}

TEST(Trainer, TwoMicroBatchesOfFourAreOneOfEight) {
  Training eight(What::encoder), accumulated(What::encoder);
  accumulated.options.batch_size = 4;
  accumulated.options.accumulation = 2;
  for (Training* run : {&eight, &accumulated}) run->go();
  expect_same_values(accumulated.values(), eight.values());
}

TEST(Trainer, ChunksChangeNoBitOfAHead) {
  Training whole, cut;
  cut.options.chunk_tokens = 30;  // two cells
  for (Training* run : {&whole, &cut}) run->go();
  expect_same_values(cut.values(), whole.values());
}

// Decision 0010: the encoders of genes and values sum the rows of a chunk before they are added.
// The difference of one step is rounding; AdamW turns a gradient of rounding size into a full step,
// so that gradients are compared and not values: losses of the first two steps.
TEST(Trainer, ChunksChangeTheEncoderInTheLastBitsOnly) {
  Training whole(What::encoder), cut(What::encoder);
  cut.options.chunk_tokens = 30;
  for (Training* run : {&whole, &cut}) run->go();
  EXPECT_EQ(cut.reports[0].loss, whole.reports[0].loss);
  EXPECT_NEAR(cut.reports[0].gradient_norm, whole.reports[0].gradient_norm,
              1e-5 * whole.reports[0].gradient_norm);
  EXPECT_NEAR(cut.reports[1].loss, whole.reports[1].loss, 1e-4);
}

TEST(Trainer, StopsAfterMaxSteps) {
  Training run;
  run.options.max_steps = 5;
  run.go();
  EXPECT_EQ(run.result.steps, 5);
  EXPECT_EQ(run.reports.back().total_steps, 5);
  EXPECT_EQ(run.result.reason, StopReason::finished);
}

TEST(Trainer, KeepsTheParametersOfTheBestValidationLoss) {
  Training run;
  std::vector<std::vector<Tensor>> after;
  const std::vector<double> losses = {0.9, 0.5, 0.7, 0.6};
  run.callbacks.validate = [&](int64_t epoch) {
    after.push_back(run.values());
    return losses[static_cast<size_t>(epoch)];
  };
  run.go();
  ASSERT_EQ(after.size(), 4U);
  EXPECT_EQ(run.result.best_epoch, 1);
  EXPECT_EQ(run.result.best_validation, 0.5);
  expect_same_values(run.values(), after[1]);
}

TEST(Trainer, StopsEarlyWhenValidationGetsNoBetter) {
  Training run;
  run.options.epochs = 50;
  run.options.early_stopping_patience = 2;
  run.callbacks.validate = [](int64_t epoch) { return epoch == 0 ? 0.5 : 0.6; };
  run.go();
  EXPECT_EQ(run.result.reason, StopReason::early_stopping);
  EXPECT_EQ(run.result.steps, 3 * 3);
  EXPECT_EQ(run.result.best_epoch, 0);
}

TEST(Trainer, AStopRequestEndsTheRunAfterItsStepAndValidatesOnce) {
  Training run;
  int validations = 0;
  run.callbacks.stop_requested = [&] { return run.reports.size() >= 2; };
  run.callbacks.validate = [&](int64_t) { return ++validations, 0.5; };
  run.go();
  EXPECT_EQ(run.result.reason, StopReason::requested);
  EXPECT_EQ(run.result.steps, 2);
  EXPECT_EQ(validations, 1);
}

TEST(Trainer, ATimeLimitEndsTheRun) {
  Training run;
  run.options.epochs = 1'000'000;
  run.options.max_seconds = 0.05;
  run.go();
  EXPECT_EQ(run.result.reason, StopReason::time_limit);
  EXPECT_GE(run.result.steps, 1);
  EXPECT_GE(run.result.seconds, 0.05);
}

TEST(Trainer, ALossThatIsNotFiniteEndsTheRunAndNamesTheStep) {
  Training run;
  std::vector<Tensor> good;
  run.on_step = [&](const StepReport& r) {
    if (r.step != 3) return;
    Parameter* frozen = run.net.encoder_parameters().front();
    fill(*frozen, std::numeric_limits<double>::quiet_NaN());
    run.net.parameters_updated();
    good = run.values();
  };
  try {
    run.go();
    ADD_FAILURE() << "nothing was thrown";
  } catch (const NumericalError& error) {
    EXPECT_THAT(error.what(), ::testing::HasSubstr("of step 4 is not finite"));
    EXPECT_EQ(error.exit_code(), ExitCode::numerical);
    EXPECT_FALSE(error.hint().empty());
  }
  expect_same_values(run.values(), good);
}

TEST(Trainer, EvaluateIsTheMeanOverAllCells) {
  Training run;
  ObjectiveSums by_hand;
  std::vector<CellView> views;
  run.cells.view(run.all, 0, views);
  for (const CellView& v : views) {
    TokenBatch batch;
    batch.assign({&v, 1});
    run.objective.run(run.ctx, batch, false, 0, by_hand);
  }
  MicroBatch micro_batch(40);
  const ObjectiveSums sums = evaluate(run.ctx, run.objective, run.cells, 0, micro_batch);
  EXPECT_EQ(sums.weight, static_cast<double>(kCells));
  EXPECT_EQ(sums.loss, by_hand.loss);
}

TEST(Trainer, ChunksHoldAtLeastOneCellAndAtMostTheirTokens) {
  Context ctx;
  const TokenStore store = tiny_store(kCells);
  std::vector<CellView> views;
  for (int64_t i = 0; i < store.size(); ++i) views.push_back(store.view(i));
  TokenBatch batch;
  for (const int64_t limit : {1, 25, 10'000}) {
    size_t next = 0;
    for_each_chunk(ctx, views, limit, batch,
                   [&](const TokenBatch& chunk, size_t begin, size_t end) {
                     EXPECT_EQ(begin, next);
                     EXPECT_GT(end, begin);
                     EXPECT_EQ(chunk.cells(), static_cast<int64_t>(end - begin));
                     EXPECT_TRUE(end - begin == 1 || chunk.tokens() <= limit) << chunk.tokens();
                     next = end;
                   });
    EXPECT_EQ(next, views.size());
  }
}

TEST(Trainer, RefusesARunWithoutCells) {
  Training run;
  const std::vector<int64_t> none;
  CountingCells empty(run.store, none, run.labels);
  ParameterBlock block(run.parameters, 0);
  EXPECT_THROW(train(run.ctx, run.objective, empty, block, run.options, [] {}, {}), ConfigError);
}

// As much memory as the activations of `tokens` tokens of the tiny network need, and no more.
int64_t memory_for(int64_t tokens) {
  Training run(What::encoder);
  run.options.chunk_tokens = tokens;
  run.options.max_steps = 3;
  run.go();
  return run.ctx.activations().peak();
}

TEST(Trainer, MemoryThatIsShortMakesChunksSmaller) {
  Training wide(What::encoder), narrow(What::encoder, 1, memory_for(60));
  std::vector<std::string> warnings;
  set_log_callback([&](LogLevel, const std::string& code, const std::string&) {
    if (!code.empty()) warnings.push_back(code);
  });
  wide.options.chunk_tokens = narrow.options.chunk_tokens = 1000;
  wide.go();
  EXPECT_TRUE(warnings.empty());
  narrow.go();
  set_log_callback(nullptr);
  ASSERT_FALSE(warnings.empty());
  EXPECT_LE(warnings.size(), 4U) << "a size that does not fit is tried once";
  for (const std::string& code : warnings) EXPECT_EQ(code, "W-MICRO-BATCH");
  ASSERT_EQ(narrow.reports.size(), wide.reports.size());
  // Gradients of the encoders are summed within a chunk first.
  for (size_t i = 0; i < wide.reports.size(); ++i)
    EXPECT_NEAR(narrow.reports[i].loss, wide.reports[i].loss, 1e-4) << i;
}

TEST(Trainer, ACellThatDoesNotFitHasItsLayersComputedAgain) {
  Training wide(What::encoder), narrow(What::encoder, 1, memory_for(1) - 1);
  wide.options.chunk_tokens = narrow.options.chunk_tokens = 1;
  std::vector<std::string> warnings;
  set_log_callback([&](LogLevel, const std::string& code, const std::string&) {
    if (!code.empty()) warnings.push_back(code);
  });
  wide.go();
  EXPECT_TRUE(warnings.empty());
  EXPECT_THROW(narrow.go(), Error);
  EXPECT_TRUE(warnings.empty());
  Training saved(What::encoder, 1, memory_for(1) - 1);
  saved.options.chunk_tokens = 1;
  saved.callbacks.need_less_memory = recomputing(saved.net);
  saved.go();
  set_log_callback(nullptr);
  EXPECT_EQ(warnings, std::vector<std::string>{"W-RECOMPUTE"});
  expect_same_values(saved.values(), wide.values());
}

TEST(Trainer, MemoryTooShortForACellIsAnError) {
  Training run(What::encoder, 1, 1 << 12);
  expect_error("out of memory on cpu", [&] { run.go(); });
}

}  // namespace
}  // namespace scgraft
