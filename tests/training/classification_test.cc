// SPDX-License-Identifier: Apache-2.0
#include "training/classification.h"

#include <cmath>

#include "model/geneformer/cells.h"
#include "model/scbert/cells.h"
#include "model/scfoundation/cells.h"
#include "tests/training/placed_cells.h"
#include "tests/training/tiny_cells.h"
#include "tests/training/tiny_models.h"
#include "training/cell_sources.h"

namespace scgraft {
namespace {

class ClassificationTest : public ::testing::Test {
 protected:
  static constexpr int64_t kCells = 10;

  CellClassification objective(std::vector<float> weights = {}) {
    return {cells_, std::move(weights)};
  }
  std::vector<CellView> views() {
    std::vector<CellView> out;
    LabelledCells(store_, all_, labels_).view(all_, 0, out);
    return out;
  }
  Tensor probabilities(CellClassification& objective, const std::vector<CellView>& cells) {
    TokenBatch batch;
    batch.assign(cells);
    Tensor p({batch.cells(), 3}, DType::f32);
    objective.predict(ctx_, batch, p.view(), {});
    return p;
  }

  Context ctx_{Device::cpu(), {.threads = 1}};
  const TokenStore store_ = tiny_store(kCells);
  const std::vector<int64_t> all_ = numbers(kCells);
  std::vector<int32_t> labels_ = tiny_labels(kCells);
  ScgptNetwork net_ = tiny_net();
  ScgptCells cells_{net_};
};

TEST_F(ClassificationTest, LossIsTheWeightedMeanOfMinusLogP) {
  labels_[2] = -1;
  const std::vector<float> weights = {1, 2, 0.5f};
  CellClassification weighted = objective(weights);
  const std::vector<CellView> cells = views();
  const Tensor p = probabilities(weighted, cells);
  double loss = 0, weight = 0;
  for (size_t i = 0; i < cells.size(); ++i) {
    if (labels_[i] < 0) continue;
    const double w = static_cast<double>(weights[static_cast<size_t>(labels_[i])]);
    loss -=
        w * std::log(static_cast<double>(p.as<float, 2>()(static_cast<int64_t>(i), labels_[i])));
    weight += w;
  }
  EXPECT_DOUBLE_EQ(weighted.weight(cells), weight);
  TokenBatch batch;
  batch.assign(cells);
  ObjectiveSums sums;
  weighted.run(ctx_, batch, false, 0, sums);
  EXPECT_DOUBLE_EQ(sums.weight, weight);
  EXPECT_NEAR(sums.mean(), loss / weight, 1e-6);
}

TEST_F(ClassificationTest, ProbabilitiesSumToOneAndDoNotDependOnBatchMates) {
  CellClassification plain = objective();
  const std::vector<CellView> cells = views();
  const Tensor together = probabilities(plain, cells);
  for (size_t i = 0; i < cells.size(); ++i) {
    const Tensor alone = probabilities(plain, {cells[i]});
    const auto row = static_cast<int64_t>(i);
    expect_same_bits(alone.view(), together.view().rows(row, row + 1));
    EXPECT_NEAR(
        values_of(alone.view())[0] + values_of(alone.view())[1] + values_of(alone.view())[2], 1,
        1e-6);
  }
}

TEST_F(ClassificationTest, GradientsAreTheSlopesOfTheLoss) {
  CellClassification weighted = objective({1, 2, 0.5f});
  std::vector<Parameter*> trained = net_.encoder_parameters();
  for (Parameter* p : net_.classifier()->parameters()) trained.push_back(p);
  expect_slopes(weighted, net_, views(), trained);
}

TEST_F(ClassificationTest, GradientsOfGeneformerAreTheSlopesOfTheLoss) {
  GeneformerNetwork net(tiny_geneformer_config(kTinyVocab, kTinyVocab),
                        {.words = false, .pooler = true, .classes = 3}, tiny_geneformer_values(4));
  GeneformerCells network(net, CellEmbedding::standard, false);
  CellClassification weighted(network, {1, 2, 0.5f});
  std::vector<Parameter*> trained = net.encoder_parameters();
  for (Parameter* p : network.head_parameters()) trained.push_back(p);
  EXPECT_EQ(network.head_parameters().size(), 4U);
  expect_slopes(weighted, net, PlacedCells(views(), 0).views(), trained, 35);
}

TEST_F(ClassificationTest, GradientsOfScbertAreTheSlopesOfTheLoss) {
  ScbertNetwork net(tiny_scbert_config(9), 12,
                    {.bins = false, .classes = 3, .rows = 9, .width1 = 12, .width2 = 8},
                    tiny_scbert_values(4));
  ScbertCells network(net);
  CellClassification weighted(network, {1, 2, 0.5f});
  std::vector<Parameter*> trained = net.encoder_parameters();
  for (Parameter* p : network.head_parameters()) trained.push_back(p);
  EXPECT_EQ(network.head_parameters().size(), 8U);
  expect_slopes(weighted, net, PlacedCells(views(), 9).views(), trained, 30);
}

TEST_F(ClassificationTest, GradientsOfScfoundationAreTheSlopesOfTheLoss) {
  ScfoundationNetwork net(tiny_scfoundation_config(kTinyVocab + 2), 0, tiny_scfoundation_values(4),
                          3);
  ScfoundationCells network(net, CellEmbedding::standard);
  CellClassification weighted(network, {1, 2, 0.5f});
  std::vector<Parameter*> trained = net.encoder_parameters();
  for (Parameter* p : network.head_parameters()) trained.push_back(p);
  EXPECT_EQ(network.head_parameters().size(), 4U);
  expect_slopes(weighted, net, EntryCells(views()).views(), trained, 35);
}

// Decision 0010: the gradient of a head or an adapter is added cell by cell.
TEST_F(ClassificationTest, ChunksAddUpToTheSameBits) {
  CellClassification plain = objective();
  const std::vector<Parameter*> head = net_.classifier()->parameters();
  const std::vector<CellView> cells = views();
  const auto gradients = [&](size_t chunk, ObjectiveSums& sums) {
    make_trainable(head);
    net_.parameters_updated();
    for (size_t begin = 0; begin < cells.size(); begin += chunk) {
      TokenBatch batch;
      batch.assign(std::span(cells).subspan(begin, std::min(chunk, cells.size() - begin)));
      plain.run(ctx_, batch, true, 0.1, sums);
    }
    std::vector<Tensor> out;
    for (const Parameter* p : head) out.push_back(p->grad.clone());
    return out;
  };
  ObjectiveSums whole, cut;
  const std::vector<Tensor> want = gradients(cells.size(), whole);
  const std::vector<Tensor> got = gradients(3, cut);
  for (size_t i = 0; i < head.size(); ++i) {
    SCOPED_TRACE(head[i]->name);
    expect_same_bits(got[i].view(), want[i].view());
  }
  EXPECT_EQ(cut.loss, whole.loss);
  EXPECT_EQ(cut.weight, whole.weight);
}

TEST_F(ClassificationTest, WantsAWeightForEveryClass) {
  expect_error("2 class weights for 3 classes", [&] { objective({1, 2}); });
}

}  // namespace
}  // namespace scgraft
