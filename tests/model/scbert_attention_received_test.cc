// SPDX-License-Identifier: Apache-2.0
// What genes receive from scBERT's attention, against the maps that the original code recorded.
#include <cmath>
#include <numeric>

#include "model/scbert/load.h"
#include "tests/model/npz.h"
#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

using AttentionOf = ScbertNetwork::AttentionOf;
constexpr const char* kFolder = "golden/scbert_pretrain";

class ScbertAttentionReceived : public ::testing::Test {
 protected:
  void SetUp() override {
    SCGRAFT_NEEDS_SHARED(cat(kFolder, "/arrays.npz"));
    arrays_ = std::make_unique<Npz>(shared_path(cat(kFolder, "/arrays.npz")));
    model_ = load_scbert(shared_path(kFolder));
  }
  // Of the first cells of the recording.
  std::vector<double> received(int cells, AttentionOf rows, int threads = 2) {
    const Npz::Array tokens = (*arrays_)["input_tokens"];
    std::vector<float> places(static_cast<size_t>(tokens.shape[1]));
    std::iota(places.begin(), places.end(), 0.0f);
    std::vector<std::vector<int32_t>> bins;
    bins.reserve(static_cast<size_t>(cells));
    for (int i = 0; i < cells; ++i) bins.push_back(tokens.row<int32_t>(i));
    std::vector<CellView> views;
    views.reserve(static_cast<size_t>(cells));
    for (int i = 0; i < cells; ++i)
      views.push_back({.cell = i, .genes = bins[static_cast<size_t>(i)], .values = places});
    Context ctx(Device::cpu(), {.threads = threads});
    TokenBatch batch;
    batch.assign(ctx, views);
    Tensor to = poisoned_tensor({batch.tokens()});
    model_.network->attention_received(ctx, batch, rows, to.view());
    return values_of(to.view());
  }
  static Tensor poisoned_tensor(const Shape& shape) {
    Tensor t(shape, DType::f32);
    std::fill_n(t.as<float>(), t.numel(), NAN);
    return t;
  }

  std::unique_ptr<Npz> arrays_;
  ScbertModel model_;
};

TEST_F(ScbertAttentionReceived, AreTheColumnSumsOfTheRecordedMap) {
  const std::vector<double> map = (*arrays_)["row0_attention_layers"].values;
  const std::vector<double> got = received(1, AttentionOf::updated);
  ASSERT_EQ(map.size(), got.size() * got.size());
  for (size_t m = 0; m < got.size(); ++m) {
    double sum = 0;
    for (size_t n = 0; n < got.size(); ++n) sum += map[n * got.size() + m];
    EXPECT_NEAR(got[m], sum, 1e-5) << m;
  }
}

TEST_F(ScbertAttentionReceived, BothKindsSumToTheTokensAndDiffer) {
  const std::vector<double> attended = received(1, AttentionOf::attended);
  const std::vector<double> updated = received(1, AttentionOf::updated);
  for (const auto* all : {&attended, &updated})
    EXPECT_NEAR(std::accumulate(all->begin(), all->end(), 0.0), 37, 1e-4);
  double largest = 0;
  for (size_t i = 0; i < attended.size(); ++i)
    largest = std::max(largest, std::abs(attended[i] - updated[i]));
  EXPECT_GT(largest, 1e-3);
}

TEST_F(ScbertAttentionReceived, BatchMatesAndThreadsDoNotChangeABit) {
  const std::vector<double> three = received(3, AttentionOf::attended);
  const std::vector<double> one = received(1, AttentionOf::attended, 1);
  EXPECT_EQ(std::vector<double>(three.begin(), three.begin() + 37), one);
}

TEST_F(ScbertAttentionReceived, ErrorsSayWhatWasWanted) {
  Context ctx;
  const std::vector<int32_t> bins = {1, 2};
  const std::vector<float> places = {0, 1};
  TokenBatch batch;
  batch.assign(ctx, std::vector<CellView>{{.cell = 0, .genes = bins, .values = places}});
  Tensor three({3}, DType::f32);
  try {
    model_.network->attention_received(ctx, batch, AttentionOf::attended, three.view());
    ADD_FAILURE() << "nothing was thrown";
  } catch (const ShapeError& error) {
    EXPECT_NE(std::string(error.what()).find("must be [2] of f32 in host memory, got [3]"),
              std::string::npos);
  }
}

}  // namespace
}  // namespace scgraft
