// SPDX-License-Identifier: Apache-2.0
#include "training/pretrain.h"

#include <cmath>

#include "io/sha256.h"
#include "tests/training/tiny_study.h"

namespace scgraft {
namespace {

class PretrainTest : public ::testing::Test {
 protected:
  PretrainTest() {
    config_ = study_.config();
    config_.task = "pretrain";
    config_.data.max_genes = 40;
    config_.train.max_steps = 4;
  }
  PretrainResult run(RunConfig config, const PretrainOptions& options = {.preset = "tiny"}) {
    losses_.clear();
    RunEvents events;
    events.step = [this](const StepReport& r) { losses_.push_back(r.loss); };
    return pretrain(study_.ctx(), config, options, events);
  }
  RunConfig again() {
    RunConfig config = config_;
    config.output_dir = study_.fresh("pretrain");
    make_directory(config.output_dir);
    return config;
  }
  static std::string sha256(const RunConfig& config) {
    return sha256_of_file(config.output_dir + "/model.safetensors");
  }

  TinyStudy& study_ = TinyStudy::get();
  RunConfig config_;
  std::vector<double> losses_;
};

TEST_F(PretrainTest, WritesAModelOfTheGenesOfTheFile) {
  const PretrainResult result = run(config_);
  EXPECT_EQ(result.cells, 120);
  EXPECT_EQ(result.genes, 303);
  EXPECT_EQ(result.training.steps, 4);
  EXPECT_EQ(losses_.size(), 4U);
  EXPECT_EQ(result.first_loss, losses_.front());
  EXPECT_TRUE(std::isfinite(result.validation_loss));
  const ScgptModel model = load_scgpt(config_.output_dir);
  EXPECT_EQ(model.network->parameters().numel(), result.parameters);
  EXPECT_EQ(model.config.max_seq_len, 41);
  for (const std::string& gene : H5ad::open(study_.atlas()).var().index())
    EXPECT_TRUE(model.vocabulary.contains(gene)) << gene;
}

TEST_F(PretrainTest, LowersTheLoss) {
  config_.train.max_steps = 40;
  config_.train.epochs = 100;
  config_.train.learning_rate = 3e-3;
  const PretrainResult result = run(config_);
  EXPECT_LT(result.last_loss, 0.8 * result.first_loss);
}

TEST_F(PretrainTest, TheSameSeedGivesTheSameFileWhateverTheThreads) {
  run(config_);
  const RunConfig threads = again();
  Context three(Device::cpu(), {.threads = 3});
  pretrain(three, threads, {.preset = "tiny"}, {});
  EXPECT_EQ(sha256(threads), sha256(config_));
  RunConfig seeded = again();
  seeded.train.seed = 1;
  run(seeded);
  EXPECT_NE(sha256(seeded), sha256(config_));
}

TEST_F(PretrainTest, GoesOnFromAModel) {
  config_.train.max_steps = 20;
  const double began = run(config_).first_loss;
  const RunConfig more = again();
  const PretrainResult result = run(more, {.preset = "tiny", .start = config_.output_dir});
  EXPECT_LT(result.first_loss, began);
  EXPECT_NE(sha256(more), sha256(config_));
}

TEST_F(PretrainTest, WithoutHeldOutCellsThereIsNoValidationLoss) {
  config_.data.val_fraction = 0;
  config_.train.max_steps = 1;
  EXPECT_TRUE(std::isnan(run(config_).validation_loss));
}

TEST_F(PretrainTest, AStopRequestLeavesAModel) {
  RunEvents events;
  int64_t steps = 0;
  events.step = [&](const StepReport& r) { steps = r.step; };
  events.stop_requested = [&] { return steps >= 2; };
  const PretrainResult result = pretrain(study_.ctx(), config_, {.preset = "tiny"}, events);
  EXPECT_EQ(result.training.reason, StopReason::requested);
  EXPECT_EQ(result.training.steps, 2);
  EXPECT_NO_THROW(load_scgpt(config_.output_dir));
}

}  // namespace
}  // namespace scgraft
