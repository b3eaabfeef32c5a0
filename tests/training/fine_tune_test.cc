// SPDX-License-Identifier: Apache-2.0
#include "training/fine_tune.h"

#include <gmock/gmock.h>

#include <map>
#include <numeric>
#include <set>

#include "io/sha256.h"
#include "tests/training/tiny_study.h"
#include "training/annotator.h"
#include "training/labelled_data.h"
#include "training/split.h"

namespace scgraft {
namespace {

class FineTuneTest : public ::testing::Test {
 protected:
  FineTuneResult run(const RunConfig& config, RunEvents events = {}) {
    losses_.clear();
    const auto outer = events.step;
    events.step = [this, outer](const StepReport& r) {
      losses_.push_back(r.loss);
      if (outer) outer(r);
    };
    return fine_tune(study_.ctx(), config, "scgraft train", false, events);
  }
  // Mean loss of steps [begin, begin + 5).
  double mean_loss(size_t begin) const {
    return std::accumulate(losses_.begin() + static_cast<ptrdiff_t>(begin),
                           losses_.begin() + static_cast<ptrdiff_t>(begin) + 5, 0.0) /
           5;
  }
  Annotation annotate(const std::string& adapter, const std::string& file) {
    Annotator annotator(adapter, {});
    return annotator.annotate(study_.ctx(), H5ad::open(file), "", "", {});
  }

  TinyStudy& study_ = TinyStudy::get();
  RunConfig config_ = study_.config();
  std::vector<double> losses_;
};

class TrainableTest : public FineTuneTest, public ::testing::WithParamInterface<const char*> {};
INSTANTIATE_TEST_SUITE_P(What, TrainableTest, ::testing::Values("adapter", "head", "all"),
                         [](const auto& what) { return std::string(what.param); });

TEST_P(TrainableTest, TwentyStepsLowerTheLossAndOnlyWhatIsTrainedIsSaved) {
  const std::string what = GetParam();
  config_.train.trainable = what;
  if (what != "adapter") config_.adapter.type = "none";
  const std::string before = sha256_of_file(study_.model() + "/model.safetensors");
  const FineTuneResult result = run(config_);
  ASSERT_EQ(losses_.size(), 20U);
  EXPECT_LT(mean_loss(15), 0.9 * mean_loss(0));
  EXPECT_EQ(sha256_of_file(study_.model() + "/model.safetensors"), before);

  const LoadedBundle saved = load_adapter(result.adapter);
  const ScgptModel base = load_scgpt(study_.model());
  int64_t lora = 0, head = 0, encoder = 0, elements = 0;
  for (const TensorInfo& info : saved.tensors.tensors()) {
    elements += info.numel();
    if (info.name.find(".lora_") != std::string::npos)
      ++lora;
    else if (info.name.find("cls_decoder.") != std::string::npos)
      ++head;
    else
      ++encoder;
  }
  // q and v of two layers, two matrices each.
  EXPECT_EQ(lora, what == "adapter" ? 2 * 2 * 2 : 0);
  EXPECT_GT(head, 0);
  EXPECT_EQ(encoder, what == "all" ? std::ssize(base.network->encoder_parameters()) : 0);
  EXPECT_EQ(elements, result.trained_parameters);
  EXPECT_EQ(saved.bundle.has_adapter, what == "adapter");
}

// What is not saved was not changed: base and saved tensors give the trained model again, bit for
// bit, in the probabilities behind the log-likelihood that the run itself measured.
TEST_P(TrainableTest, TheSavedModelScoresAsTheTrainedOneDid) {
  config_.train.trainable = GetParam();
  if (config_.train.trainable != "adapter") config_.adapter.type = "none";
  config_.data.test_fraction = 0.3;
  const FineTuneResult result = run(config_);
  ASSERT_EQ(result.scored_part, "test");
  const ClassificationMetrics& was = result.scores.at("model");

  const H5ad file = H5ad::open(study_.atlas());
  const CellSelection cells = select_labelled_cells(file, config_.data);
  const Annotation now = annotate(result.adapter, study_.atlas());
  const std::vector<int64_t> test = stratified_split(cells.label, 0.3, 0).validation;
  ASSERT_EQ(std::ssize(test), result.test_cells);
  std::vector<int32_t> truth, label;
  Tensor p({std::ssize(test), now.probabilities.dim(1)}, DType::f32);
  for (size_t i = 0; i < test.size(); ++i) {
    const int64_t row = cells.rows[static_cast<size_t>(test[i])];
    truth.push_back(cells.label[static_cast<size_t>(test[i])]);
    label.push_back(now.label[static_cast<size_t>(row)]);
    for (int64_t c = 0; c < p.dim(1); ++c)
      p.as<float, 2>()(static_cast<int64_t>(i), c) = now.probabilities.as<float, 2>()(row, c);
  }
  const ClassificationMetrics is =
      classification_metrics(truth, label, static_cast<int32_t>(p.dim(1)), p.view());
  ASSERT_TRUE(was.nll && is.nll && was.ece && is.ece);
  EXPECT_EQ(*is.nll, *was.nll);
  EXPECT_EQ(*is.ece, *was.ece);
  EXPECT_EQ(is.confusion, was.confusion);
}

TEST_F(FineTuneTest, TheSameSeedGivesTheSameAdapterWhateverTheThreads) {
  const std::string first = run(config_).adapter + "/adapter_model.safetensors";
  RunConfig again = study_.config();
  Context three(Device::cpu(), {.threads = 3});
  const std::string second =
      fine_tune(three, again, "", false, {}).adapter + "/adapter_model.safetensors";
  EXPECT_EQ(sha256_of_file(second), sha256_of_file(first));
  again = study_.config();
  again.train.seed = 1;
  EXPECT_NE(sha256_of_file(run(again).adapter + "/adapter_model.safetensors"),
            sha256_of_file(first));
}

TEST_F(FineTuneTest, BaselinesStandBesideTheModel) {
  const FineTuneResult result = run(config_);
  EXPECT_EQ(result.scored_part, "validation");
  for (const char* method : {"model", "zero_shot_knn", "logistic_regression", "knn"}) {
    ASSERT_TRUE(result.scores.contains(method)) << method;
    EXPECT_EQ(result.scores.at(method).cells, result.validation_cells) << method;
  }
  EXPECT_GT(result.scores.at("logistic_regression").accuracy, 0.5) << "of four types";
}

// Donors are told apart by their numbers of cells: a part that is made of whole donors has a size
// that is a sum of theirs.
TEST_F(FineTuneTest, ASplitByDonorNeverCutsADonor) {
  const H5ad file = H5ad::open(study_.atlas());
  const Categorical donors = as_categorical(file.obs().read("donor_id"));
  std::map<int32_t, int64_t> size;
  for (const int32_t code : donors.codes) ++size[code];
  std::set<int64_t> sizes;
  for (const auto& [donor, cells] : size) sizes.insert(cells);
  ASSERT_EQ(sizes.size(), 3U) << "donors of one size prove nothing";
  config_.data.split_by = "donor_id";
  config_.data.val_fraction = 0.3;
  config_.data.test_fraction = 0.3;
  config_.train.max_steps = 1;
  const FineTuneResult result = run(config_);
  for (const int64_t part : {result.train_cells, result.validation_cells, result.test_cells})
    EXPECT_TRUE(sizes.contains(part)) << part << " cells are no donor";
  EXPECT_EQ(result.train_cells + result.validation_cells + result.test_cells, 120);
}

TEST_F(FineTuneTest, AFileForValidationIsNotTrainedOn) {
  config_.data.val = study_.shifted();
  config_.train.max_steps = 2;
  const FineTuneResult result = run(config_);
  EXPECT_EQ(result.train_cells, 120);
  EXPECT_GT(result.validation_cells, 0);
  EXPECT_LE(result.validation_cells, 40);
}

TEST_F(FineTuneTest, AStopRequestLeavesAnAdapter) {
  RunEvents events;
  events.stop_requested = [this] { return losses_.size() >= 3; };
  const FineTuneResult result = run(config_, events);
  EXPECT_EQ(result.training.reason, StopReason::requested);
  EXPECT_EQ(result.training.steps, 3);
  EXPECT_EQ(annotate(result.adapter, study_.shifted()).label.size(), 40U);
}

TEST_F(FineTuneTest, ATimeLimitLeavesAnAdapter) {
  config_.train.max_steps = 0;
  config_.train.epochs = 100'000;
  config_.train.max_seconds = 0.1;
  const FineTuneResult result = run(config_);
  EXPECT_EQ(result.training.reason, StopReason::time_limit);
  EXPECT_EQ(annotate(result.adapter, study_.shifted()).label.size(), 40U);
}

TEST_F(FineTuneTest, AnExistingAdapterIsRefusedAndLeftAlone) {
  config_.train.max_steps = 1;
  const std::string file = run(config_).adapter + "/adapter_model.safetensors";
  const std::string before = sha256_of_file(file);
  config_.train.seed = 5;
  EXPECT_THROW(run(config_), ConfigError);
  EXPECT_EQ(sha256_of_file(file), before);
  fine_tune(study_.ctx(), config_, "", true, {});
  EXPECT_NE(sha256_of_file(file), before);
}

TEST_F(FineTuneTest, AWeightThatIsNotANumberEndsTheRunAndNothingIsWritten) {
  ScgptModel model = load_scgpt(study_.model());
  for (Parameter* p : model.network->parameters().all())
    if (p->value.is_shared()) p->value = p->value.clone();
  fill(*model.network->parameters().find("transformer_encoder.layers.0.linear1.weight"), NAN);
  config_.base_model = study_.fresh("broken");
  make_directory(config_.base_model);
  save_scgpt(config_.base_model, model);
  // The frozen model's embeddings come first; a loss is caught in trainer_test.cc.
  EXPECT_THROW(run(config_), NumericalError);
  EXPECT_FALSE(std::filesystem::exists(config_.output_dir + "/adapter"));
  EXPECT_TRUE(std::filesystem::is_empty(config_.output_dir));
}

}  // namespace
}  // namespace scgraft
