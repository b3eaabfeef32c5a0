// SPDX-License-Identifier: Apache-2.0
// What scBERT's attention says about genes, on a CUDA device against the CPU.
#include <cmath>
#include <numeric>

#include "model/scbert/network.h"
#include "tests/training/tiny_models.h"
#include "tests/training/tiny_study.h"
#include "training/attribution.h"

namespace scgraft {
namespace {

using AttentionOf = ScbertNetwork::AttentionOf;
constexpr int64_t kRows = 70;

class AttributionOnDevice : public ::testing::Test {
 protected:
  void SetUp() override {
    if (cuda_device_count() == 0) GTEST_SKIP() << "this machine or build has no CUDA device";
  }
  // Of two cells, one after the other.
  static std::vector<double> received(Device device, DType product, AttentionOf rows) {
    ScbertNetwork network(tiny_scbert_config(kRows), 12, ScbertNetwork::Heads{.bins = false},
                          tiny_scbert_values(1));
    network.move_to(device);
    network.set_precision(product);
    std::vector<float> places(kRows);
    std::iota(places.begin(), places.end(), 0.0f);
    std::vector<int32_t> bins[2];
    for (int32_t i = 0; i < kRows; ++i) {
      bins[0].push_back(i % 5);
      bins[1].push_back(i * i % 7 % 5);
    }
    Context ctx(device, {.threads = 1});
    TokenBatch batch;
    batch.assign(ctx, std::vector<CellView>{{.cell = 0, .genes = bins[0], .values = places},
                                            {.cell = 1, .genes = bins[1], .values = places}});
    Tensor to({batch.tokens()}, DType::f32);
    std::fill_n(to.as<float>(), to.numel(), NAN);
    network.attention_received(ctx, batch, rows, to.view());
    return values_of(to.view());
  }
};

// 16-bit activations pass through two layers before the last attention.
TEST_F(AttributionOnDevice, TokensReceiveWhatTheyDoOnTheCpu) {
  for (const AttentionOf rows : {AttentionOf::attended, AttentionOf::updated}) {
    const std::vector<double> want = received(Device::cpu(), DType::f32, rows);
    for (const DType type : {DType::f32, DType::bf16, DType::f16}) {
      SCOPED_TRACE(name_of(type));
      const std::vector<double> got = received(Device::cuda(), type, rows);
      ASSERT_EQ(got.size(), want.size());
      for (size_t i = 0; i < want.size(); ++i)
        EXPECT_NEAR(got[i], want[i],
                    want[i] * (type == DType::f32    ? 1e-5
                               : type == DType::bf16 ? 2e-2
                                                     : 3e-3))
            << i;
      for (size_t cell = 0; cell < 2; ++cell)
        EXPECT_NEAR(std::accumulate(got.begin() + static_cast<ptrdiff_t>(cell) * kRows,
                                    got.begin() + static_cast<ptrdiff_t>(cell + 1) * kRows, 0.0),
                    kRows, 1e-3);
    }
  }
}

TEST_F(AttributionOnDevice, GenesHaveTheScoresOfTheCpu) {
  TinyStudy& study = TinyStudy::get();
  const H5ad file = H5ad::open(study.shifted());
  const Strings genes = file.var().index();
  const std::string folder = study.fresh("scbert");
  write_scbert(folder, std::span<const std::string>(genes).first(60));
  const auto model = open_cell_model(folder);
  const auto attribute = [&](Device device, int64_t tokens) {
    Context ctx(device, {.threads = 1});
    return attribute_genes(ctx, file, *model, model->preparation(),
                           {.by = "cell_type", .chunk_tokens = tokens}, {});
  };
  const GeneAttribution want = attribute(Device::cpu(), 0), got = attribute(Device::cuda(), 0);
  EXPECT_EQ(got.groups, want.groups);
  EXPECT_EQ(got.with_gene, want.with_gene);
  ASSERT_EQ(got.score.size(), want.score.size());
  for (size_t i = 0; i < want.score.size(); ++i)
    EXPECT_NEAR(got.score[i], want.score[i], 1e-5 * want.score[i]);
  EXPECT_EQ(attribute(Device::cuda(), 200).score, got.score);
}

}  // namespace
}  // namespace scgraft
