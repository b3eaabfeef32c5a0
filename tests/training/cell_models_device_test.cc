// SPDX-License-Identifier: Apache-2.0
// Geneformer, scBERT and scFoundation as classifiers on a CUDA device against the CPU.
#include <memory>

#include "adapters/adapter.h"
#include "model/geneformer/cells.h"
#include "model/scbert/cells.h"
#include "model/scfoundation/cells.h"
#include "tests/training/placed_cells.h"
#include "tests/training/tiny_models.h"
#include "training/cell_sources.h"
#include "training/classification.h"
#include "training/trainer.h"

namespace scgraft {
namespace {

constexpr int64_t kCells = 16;
constexpr int64_t kRows = 12;  // of a cell of scBERT

enum class Model { geneformer, scbert, scfoundation };

// A network, its cells, and LoRA on it.
struct Grafted {
  Grafted(Model which, Device device, DType product) : ctx(device, {.threads = 1}) {
    std::vector<CellView> views;
    for (int64_t i = 0; i < store.size(); ++i) views.push_back(store.view(i));
    if (which == Model::geneformer) {
      auto net = std::make_unique<GeneformerNetwork>(
          tiny_geneformer_config(kTinyVocab, kTinyVocab),
          GeneformerNetwork::Heads{.words = false, .pooler = true, .classes = 3},
          tiny_geneformer_values(4));
      network = std::make_unique<GeneformerCells>(*net, CellEmbedding::standard, true);
      backbone = std::move(net);
      cells = std::make_unique<PlacedCells>(views, 0);
    } else if (which == Model::scfoundation) {
      auto net = std::make_unique<ScfoundationNetwork>(tiny_scfoundation_config(kTinyVocab + 2), 0,
                                                       tiny_scfoundation_values(4), 3);
      network = std::make_unique<ScfoundationCells>(*net, CellEmbedding::standard);
      backbone = std::move(net);
      cells = std::make_unique<EntryCells>(views);
    } else {
      auto net = std::make_unique<ScbertNetwork>(
          tiny_scbert_config(kRows), 12,
          ScbertNetwork::Heads{
              .bins = false, .classes = 3, .rows = kRows, .width1 = 12, .width2 = 8},
          tiny_scbert_values(4));
      network = std::make_unique<ScbertCells>(*net);
      backbone = std::move(net);
      cells = std::make_unique<PlacedCells>(views, kRows);
    }
    backbone->move_to(device);
    backbone->set_precision(product);
    AdapterOptions lora;
    lora.type = "lora";
    lora.rank = 2;
    lora.targets = {"q", "v"};
    adapter = make_adapter(lora, *backbone, 5);
    adapter->attach(*backbone);
    parameters = network->head_parameters();
    for (Parameter* p : adapter->parameters()) parameters.push_back(p);
  }

  // The cells of the store with other tokens.
  class Source : public CellSource {
   public:
    explicit Source(const OtherCells& placed) : placed_(placed) {}
    int64_t size() const override { return kCells; }
    void view(std::span<const int64_t> wanted, int64_t, std::vector<CellView>& views) override {
      views.clear();
      for (const int64_t i : wanted) {
        views.push_back(placed_.views()[static_cast<size_t>(i)]);
        views.back().label = static_cast<int32_t>(i % 3);
      }
    }

   private:
    const OtherCells& placed_;
  };

  // Losses of five steps.
  std::vector<double> train_steps(DType product) {
    CellClassification objective(*network, {1, 2, 0.5f});
    Source source(*cells);
    ParameterBlock block(parameters, 0.01);
    backbone->parameters_updated();
    std::vector<double> losses;
    TrainerCallbacks callbacks;
    callbacks.on_step = [&](const StepReport& report) { losses.push_back(report.loss); };
    train(
        ctx, objective, source, block,
        {.epochs = 4,
         .max_steps = 5,
         .batch_size = 8,
         .chunk_tokens = 40,
         .learning_rate = 1e-3,
         .activations = product},
        [&] { backbone->parameters_updated(); }, callbacks);
    return losses;
  }

  Context ctx;
  const TokenStore store = tiny_store(kCells);
  std::unique_ptr<OtherCells> cells;
  std::unique_ptr<Backbone> backbone;
  std::unique_ptr<CellNetwork> network;
  std::unique_ptr<Adapter> adapter;
  std::vector<Parameter*> parameters;
};

class CellModelsOnDevice : public ::testing::TestWithParam<Model> {
 protected:
  void SetUp() override {
    if (cuda_device_count() == 0) GTEST_SKIP() << "this machine or build has no CUDA device";
  }
};
INSTANTIATE_TEST_SUITE_P(Models, CellModelsOnDevice,
                         ::testing::Values(Model::geneformer, Model::scbert, Model::scfoundation),
                         [](const auto& model) {
                           return model.param == Model::scbert       ? "scbert"
                                  : model.param == Model::geneformer ? "geneformer"
                                                                     : "scfoundation";
                         });

// As trainer_device_test.cc: 1e-4 in f32; in 16 bits what activations of that type leave.
TEST_P(CellModelsOnDevice, TrainingFollowsTheLossesOfTheCpu) {
  const std::vector<double> cpu =
      Grafted(GetParam(), Device::cpu(), DType::f32).train_steps(DType::f32);
  ASSERT_EQ(cpu.size(), 5U);
  for (const DType type : {DType::f32, DType::bf16, DType::f16}) {
    SCOPED_TRACE(name_of(type));
    const std::vector<double> got = Grafted(GetParam(), Device::cuda(), type).train_steps(type);
    ASSERT_EQ(got.size(), 5U);
    for (size_t i = 0; i < got.size(); ++i)
      EXPECT_NEAR(got[i], cpu[i],
                  type == DType::f32    ? 1e-4
                  : type == DType::bf16 ? (GetParam() == Model::scfoundation ? 3e-2 : 2e-2)
                                        : 3e-3)
          << i;
  }
}

TEST_P(CellModelsOnDevice, PredictsAndEmbedsAsTheCpu) {
  std::vector<Tensor> probabilities, embeddings;
  for (const Device device : {Device::cpu(), Device::cuda()}) {
    Grafted run(GetParam(), device, DType::f32);
    CellClassification objective(*run.network, {});
    TokenBatch batch;
    batch.assign(run.ctx, run.cells->views());
    probabilities.emplace_back(Shape{batch.cells(), 3}, DType::f32);
    embeddings.emplace_back(Shape{batch.cells(), run.network->embedding_dim()}, DType::f32);
    objective.predict(run.ctx, batch, probabilities.back().view(), embeddings.back().view());
  }
  constexpr int64_t kTerms = 150;
  expect_close(probabilities[1].view(), std::as_const(probabilities[0]).view(), kTerms);
  expect_close(embeddings[1].view(), std::as_const(embeddings[0]).view(), kTerms);
}

}  // namespace
}  // namespace scgraft
