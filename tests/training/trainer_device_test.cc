// SPDX-License-Identifier: Apache-2.0
// Training runs on a CUDA device against the same runs on the CPU.
#include "adapters/adapter.h"
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

TrainedRun train_lora(Context& ctx, const std::function<void()>& after_step = {},
                      DType product = DType::f32) {
  const Device device = ctx.device();
  const TokenStore store = tiny_store(kCells);
  const std::vector<int64_t> all = numbers(kCells);
  const std::vector<int32_t> labels = tiny_labels(kCells);
  ScgptNetwork net = tiny_net();
  net.move_to(device);
  net.set_precision(product);
  AdapterOptions options;
  options.type = "lora";
  options.rank = 2;
  options.alpha = 4;
  options.dropout = 0.1;
  options.targets = {"q", "v"};
  const std::unique_ptr<Adapter> adapter = make_adapter(options, net, 5);
  adapter->attach(net);
  std::vector<Parameter*> parameters = net.classifier()->parameters();
  for (Parameter* p : adapter->parameters()) parameters.push_back(p);
  CellClassification objective(net, *net.classifier(), {1, 2, 0.5f});
  LabelledCells cells(store, all, labels);
  return train_on(ctx, net, objective, cells, parameters, after_step, product);
}

TrainedRun train_lora(Device device) {
  Context ctx(device, {.threads = 1});
  return train_lora(ctx);
}

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

TEST_F(TrainerOnDevice, SixteenBitsStayNearTheLossesOfTheCpu) {
  const TrainedRun cpu = train_lora(Device::cpu());
  for (const DType type : {DType::bf16, DType::f16}) {
    SCOPED_TRACE(type);
    Context ctx(Device::cuda(), {.threads = 1});
    const TrainedRun got = train_lora(ctx, {}, type);
    ASSERT_EQ(got.losses.size(), cpu.losses.size());
    for (size_t i = 0; i < cpu.losses.size(); ++i)
      EXPECT_NEAR(got.losses[i], cpu.losses[i], type == DType::bf16 ? 2e-2 : 3e-3) << i;
  }
}

TEST_F(TrainerOnDevice, MaskedExpressionHasTheLossesOfTheCpu) {
  expect_losses(train_masked(Device::cuda()), train_masked(Device::cpu()));
}

TEST_F(TrainerOnDevice, TheSameSeedGivesTheSameBits) {
  const TrainedRun once = train_lora(Device::cuda()), again = train_lora(Device::cuda());
  EXPECT_EQ(again.losses, once.losses);
  expect_same_values(again.values, once.values);
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
    CellClassification objective(net, *net.classifier(), {});
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
