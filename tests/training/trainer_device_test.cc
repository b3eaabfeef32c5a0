// SPDX-License-Identifier: Apache-2.0
// Training runs on a CUDA device against the same runs on the CPU.
#include <map>

#include "adapters/adapter.h"
#include "runtime/gpu/host_waits.h"
#include "runtime/gpu/memory.h"
#include "runtime/gpu/streams_emulated.h"
#include "tests/training/tiny_cells.h"
#include "training/cell_sources.h"
#include "training/classification.h"
#include "training/masked_expression.h"
#include "training/trainer.h"

namespace scgraft {
namespace {

constexpr int64_t kCells = 24;
// Five steps of AdamW, which turns rounding of small gradients into whole steps, on losses near 1.
constexpr double kLoss = 1e-4;

struct TrainedRun {
  std::vector<double> losses;
  std::vector<Tensor> values;
};

TrainedRun train_on(Context& ctx, ScgptNetwork& net, Objective& objective, CellSource& cells,
                    const std::vector<Parameter*>& parameters,
                    const std::function<void()>& after_step = {}, DType product = DType::f32) {
  ParameterBlock block(parameters, 0.01);
  net.parameters_updated();
  TrainedRun run;
  TrainerCallbacks callbacks;
  callbacks.on_step = [&](const StepReport& report) {
    run.losses.push_back(report.loss);
    if (after_step) after_step();
  };
  train(
      ctx, objective, cells, block,
      {.epochs = 4,
       .max_steps = 5,
       .batch_size = 8,
       .chunk_tokens = 40,
       .learning_rate = 1e-3,
       .activations = product},
      [&] { net.parameters_updated(); }, callbacks);
  for (const Parameter* p : parameters) run.values.push_back(on_host(p->value.view()));
  return run;
}

TrainedRun train_adapter(const std::string& type, Context& ctx,
                         const std::function<void()>& after_step = {}, DType product = DType::f32) {
  const Device device = ctx.device();
  const TokenStore store = tiny_store(kCells);
  const std::vector<int64_t> all = numbers(kCells);
  const std::vector<int32_t> labels = tiny_labels(kCells);
  ScgptNetwork net = tiny_net();
  net.move_to(device);
  net.set_precision(product);
  AdapterOptions options;
  options.type = type;
  options.rank = 2;
  options.alpha = 4;
  options.dropout = 0.1;
  options.targets = {"q", "v"};
  const std::unique_ptr<Adapter> adapter = make_adapter(options, net, 5);
  adapter->attach(net);
  std::vector<Parameter*> parameters = net.classifier()->parameters();
  for (Parameter* p : adapter->parameters()) parameters.push_back(p);
  ScgptCells network(net);
  CellClassification objective(network, {1, 2, 0.5f});
  LabelledCells cells(store, all, labels);
  return train_on(ctx, net, objective, cells, parameters, after_step, product);
}

TrainedRun train_lora(Context& ctx, const std::function<void()>& after_step = {}) {
  return train_adapter("lora", ctx, after_step);
}

TrainedRun train_adapter(const std::string& type, Device device) {
  Context ctx(device, {.threads = 1});
  return train_adapter(type, ctx);
}
TrainedRun train_lora(Device device) { return train_adapter("lora", device); }

TrainedRun train_masked(Device device) {
  Context ctx(device, {.threads = 1});
  const TokenStore store = tiny_store(kCells);
  const std::vector<int64_t> all = numbers(kCells);
  ScgptNetwork net = tiny_net();
  net.move_to(device);
  MaskedExpression objective(net);
  MaskedCells cells(store, all, {.ratio = 0.4, .mask_value = -1, .seed = 2});
  std::vector<Parameter*> parameters;
  for (Parameter* p : net.parameters().all())
    if (!p->name.starts_with("cls_decoder")) parameters.push_back(p);
  return train_on(ctx, net, objective, cells, parameters);
}

class TrainerOnDevice : public ::testing::Test {
 protected:
  void SetUp() override {
    if (cuda_device_count() == 0) GTEST_SKIP() << "this machine has no CUDA device";
  }
  static void expect_losses(const TrainedRun& got, const TrainedRun& want) {
    ASSERT_EQ(want.losses.size(), 5U);
    ASSERT_EQ(got.losses.size(), want.losses.size());
    for (size_t i = 0; i < want.losses.size(); ++i)
      EXPECT_NEAR(got.losses[i], want.losses[i], kLoss * std::max(1.0, want.losses[i]));
  }
};

TEST_F(TrainerOnDevice, LoraHasTheLossesOfTheCpu) {
  expect_losses(train_lora(Device::cuda()), train_lora(Device::cpu()));
}

TEST_F(TrainerOnDevice, HraHasTheLossesOfTheCpu) {
  const TrainedRun got = train_adapter("hra", Device::cuda());
  expect_losses(got, train_adapter("hra", Device::cpu()));
  EXPECT_EQ(got.losses, train_adapter("hra", Device::cuda()).losses);
}

TEST_F(TrainerOnDevice, OftHasTheLossesOfTheCpu) {
  const TrainedRun got = train_adapter("oft", Device::cuda());
  expect_losses(got, train_adapter("oft", Device::cpu()));
  EXPECT_EQ(got.losses, train_adapter("oft", Device::cuda()).losses);
}

TEST_F(TrainerOnDevice, PrefixTuningHasTheLossesOfTheCpu) {
  const TrainedRun got = train_adapter("prefix_tuning", Device::cuda());
  expect_losses(got, train_adapter("prefix_tuning", Device::cpu()));
  EXPECT_EQ(got.losses, train_adapter("prefix_tuning", Device::cuda()).losses);
}

TEST_F(TrainerOnDevice, SixteenBitsStayNearTheLossesOfTheCpu) {
  for (const char* kind : {"lora", "hra", "oft", "prefix_tuning"}) {
    const TrainedRun cpu = train_adapter(kind, Device::cpu());
    for (const DType type : {DType::bf16, DType::f16}) {
      SCOPED_TRACE(cat(kind, ", ", type));
      Context ctx(Device::cuda(), {.threads = 1});
      const TrainedRun got = train_adapter(kind, ctx, {}, type);
      ASSERT_EQ(got.losses.size(), cpu.losses.size());
      for (size_t i = 0; i < cpu.losses.size(); ++i)
        EXPECT_NEAR(got.losses[i], cpu.losses[i], type == DType::bf16 ? 2e-2 : 3e-3) << i;
    }
  }
}

TEST_F(TrainerOnDevice, MaskedExpressionHasTheLossesOfTheCpu) {
  expect_losses(train_masked(Device::cuda()), train_masked(Device::cpu()));
}

TEST_F(TrainerOnDevice, TheSameSeedGivesTheSameBits) {
  const TrainedRun once = train_lora(Device::cuda()), again = train_lora(Device::cuda());
  EXPECT_EQ(again.losses, once.losses);
  expect_same_values(again.values, once.values);
  if constexpr (kCudaEmulated) {
    gpu::emulated_copy_time() = gpu::CopyTime::early;
    const TrainedRun early = train_lora(Device::cuda());
    gpu::emulated_copy_time() = gpu::CopyTime::late;
    EXPECT_EQ(early.losses, once.losses);
    expect_same_values(early.values, once.values);
  }
}

TEST_F(TrainerOnDevice, PredictsAndEmbedsAsTheCpu) {
  const TokenStore store = tiny_store(kCells);
  std::vector<CellView> views;
  for (int64_t i = 0; i < store.size(); ++i) views.push_back(store.view(i));
  std::vector<Tensor> probabilities, embeddings;
  for (const Device device : {Device::cpu(), Device::cuda()}) {
    Context ctx(device, {.threads = 1});
    ScgptNetwork net = tiny_net();
    net.move_to(device);
    ScgptCells network(net);
    CellClassification objective(network, {});
    TokenBatch batch;
    batch.assign(ctx, views);
    probabilities.emplace_back(Shape{batch.cells(), 3}, DType::f32);
    embeddings.emplace_back(Shape{batch.cells(), net.dim()}, DType::f32);
    objective.predict(ctx, batch, probabilities.back().view(), embeddings.back().view());
  }
  // Six sums of up to 24 terms follow each other; probabilities end at 1, embeddings near 2.
  constexpr int64_t kTerms = 150;
  expect_close(probabilities[1].view(), std::as_const(probabilities[0]).view(), kTerms);
  expect_close(embeddings[1].view(), std::as_const(embeddings[0]).view(), kTerms);
}

// A run of an adapter with more steps in an epoch, and what a wrapped objective does to them.
struct LongRun {
  explicit LongRun(Device device, const char* kind = "lora") : ctx(device, {.threads = 1}) {
    net.move_to(device);
    AdapterOptions wanted;
    wanted.type = kind;
    wanted.rank = 2;
    wanted.targets = {"q", "v"};
    adapter = make_adapter(wanted, net, 5);
    adapter->attach(net);
    parameters = net.classifier()->parameters();
    for (Parameter* p : adapter->parameters()) parameters.push_back(p);
    options = {.epochs = 2,
               .batch_size = 4,
               .chunk_tokens = 40,
               .schedule = ScheduleKind::constant,
               .learning_rate = 1e-3,
               .warmup_ratio = 0};
  }

  // Makes gradients of chosen attempts at a step too large for f32.
  class Overflowing : public Objective {
   public:
    explicit Overflowing(Objective& inner) : inner_(inner) {}
    std::string_view name() const override { return inner_.name(); }
    double weight(std::span<const CellView> cells) const override { return inner_.weight(cells); }
    void run(Context& ctx, const TokenBatch& batch, bool training, const GradientScale& scale,
             ObjectiveSums& sums) override {
      const uint32_t step = ctx.random().step;
      if (sums.weight == 0) ++attempts[step];  // its first chunk
      const bool overflow = training && step == bad_step && attempts[step] <= bad_attempts;
      const double factor = overflow ? 1e300 : 1;
      inner_.run(ctx, batch, training, {scale.value * factor, scale.factor}, sums);
    }
    std::map<uint32_t, int> attempts;
    uint32_t bad_step = 0;
    int bad_attempts = 0;

   private:
    Objective& inner_;
  };

  // Cells that cannot be had after so many views.
  class FailingCells : public LabelledCells {
   public:
    using LabelledCells::LabelledCells;
    void view(std::span<const int64_t> cells, int64_t epoch,
              std::vector<CellView>& views) override {
      if (views_until_error-- == 0) throw DataError("cell 7 is damaged");
      LabelledCells::view(cells, epoch, views);
    }
    int64_t views_until_error = -1;  // never
  };

  void go() {
    ParameterBlock block(parameters, 0.01);
    net.parameters_updated();
    callbacks.on_step = [this](const StepReport& r) {
      reports.push_back(r);
      if constexpr (kBuiltWithCuda) {
        waits.push_back(gpu::host_waits());
        memory.push_back(gpu::allocated(ctx.device()));
      }
      if (on_step) on_step();
    };
    train(
        ctx, objective, cells, block, options, [this] { net.parameters_updated(); }, callbacks);
  }
  std::vector<Tensor> values() const {
    std::vector<Tensor> out;
    for (const Parameter* p : parameters) out.push_back(on_host(p->value.view()));
    return out;
  }
  std::vector<double> losses() const {
    std::vector<double> out;
    for (const StepReport& r : reports) out.push_back(r.loss);
    return out;
  }

  Context ctx;
  TokenStore store = tiny_store(kCells);
  std::vector<int64_t> all = numbers(kCells);
  std::vector<int32_t> labels = tiny_labels(kCells);
  ScgptNetwork net = tiny_net();
  std::unique_ptr<Adapter> adapter;
  std::vector<Parameter*> parameters;
  ScgptCells network{net};
  CellClassification classification{network, {}};
  Overflowing objective{classification};
  FailingCells cells{store, all, labels};
  TrainerOptions options;
  TrainerCallbacks callbacks;
  std::function<void()> on_step;
  std::vector<StepReport> reports;
  std::vector<gpu::HostWaits> waits;
  std::vector<int64_t> memory;
};

constexpr size_t kStepsPerEpoch = 6;

// Between the reports of two steps of an epoch the host has enqueued one more step.
TEST_F(TrainerOnDevice, TheHostDoesNotWaitForAStreamInAStep) {
  for (const char* kind : {"lora", "hra", "oft", "prefix_tuning"}) {
    SCOPED_TRACE(kind);
    LongRun run(Device::cuda(), kind);
    run.go();
    ASSERT_EQ(run.waits.size(), 2 * kStepsPerEpoch);
    for (size_t i = 1; i < run.waits.size(); ++i) {
      // The last step of an epoch is waited for, but not by its stream; the first one of the next
      // begins after that.
      EXPECT_EQ(run.waits[i].streams, run.waits[i - 1].streams) << i;
      EXPECT_EQ(run.waits[i].copies, run.waits[i - 1].copies) << i;
    }
    EXPECT_EQ(run.memory.front(), run.memory.back());
  }
}

// The host's work on step n + 1 is done before it looks at step n.
TEST_F(TrainerOnDevice, AStepIsReportedWhileTheNextIsUnderWay) {
  LongRun run(Device::cuda());
  std::vector<size_t> begun;
  run.on_step = [&] { begun.push_back(run.objective.attempts.size()); };
  run.options.epochs = 1;
  run.go();
  EXPECT_EQ(begun, (std::vector<size_t>{2, 3, 4, 5, 6, 6}));
}

// In f32 a power of two changes no bit of an update, so that the runs can be compared.
TEST_F(TrainerOnDevice, AnOverflowHalvesTheLossScaleAndRepeatsTheStep) {
  LongRun plain(Device::cuda());
  plain.go();
  for (const uint32_t bad_step : {3u, 5u, 7u}) {
    SCOPED_TRACE(bad_step);
    LongRun run(Device::cuda());
    run.options.activations = DType::f16;
    run.objective.bad_step = bad_step;
    run.objective.bad_attempts = 2;
    run.go();
    EXPECT_EQ(run.losses(), plain.losses());
    expect_same_values(run.values(), plain.values());
    for (const StepReport& r : run.reports) {
      EXPECT_EQ(r.step, &r - run.reports.data() + 1);
      EXPECT_EQ(r.loss_scale, r.step > bad_step ? 16384 : 65536) << r.step;
    }
  }
}

TEST_F(TrainerOnDevice, AGradientThatIsNotFiniteLeavesTheParametersBeforeItsStep) {
  LongRun two(Device::cuda()), run(Device::cuda());
  two.options.max_steps = 2;
  two.go();
  run.objective.bad_step = 2;
  run.objective.bad_attempts = 1;
  try {
    run.go();
    ADD_FAILURE() << "nothing was thrown";
  } catch (const NumericalError& error) {
    EXPECT_THAT(error.what(), ::testing::HasSubstr("the gradient of step 3 is not finite"));
    EXPECT_EQ(error.exit_code(), ExitCode::numerical);
  }
  EXPECT_EQ(run.losses(), two.losses());
  expect_same_values(run.values(), two.values());
}

// The steps before the one whose cells are damaged are reported, also one that is repeated.
TEST_F(TrainerOnDevice, AnErrorOfTheLoaderComesAfterTheStepsBeforeIt) {
  for (const int bad_attempts : {0, 1}) {
    LongRun run(Device::cuda());
    run.options.activations = DType::f16;
    run.objective.bad_step = 2;
    run.objective.bad_attempts = bad_attempts;
    constexpr int64_t kOfTheRehearsal = 2;
    run.cells.views_until_error = kOfTheRehearsal + 3;
    if (bad_attempts > 0) {
      EXPECT_NO_THROW(run.go()) << "the cells were damaged once";
      EXPECT_EQ(run.reports.size(), 2 * kStepsPerEpoch);
    } else {
      EXPECT_THROW(run.go(), DataError);
      EXPECT_EQ(run.reports.size(), 3U);
    }
  }
}

TEST_F(TrainerOnDevice, AStopRequestEndsTheRunWithAllItsSteps) {
  LongRun run(Device::cuda());
  run.callbacks.stop_requested = [&] { return run.objective.attempts.size() >= 3; };
  run.go();
  EXPECT_EQ(run.reports.size(), 3U);
}

TEST_F(TrainerOnDevice, NoStepAllocatesMemory) {
  Context ctx(Device::cuda(), {.threads = 1});
  std::vector<int64_t> allocations;
  train_lora(ctx, [&] {
    allocations.push_back(ctx.activations().allocations() + ctx.scratch().allocations());
  });
  ASSERT_EQ(allocations.size(), 5U);
  EXPECT_EQ(allocations.front(), allocations.back());
}

}  // namespace
}  // namespace scgraft
