// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "model/scfoundation/value_embedding.h"
#include "tests/model/tiny_scfoundation.h"
#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

constexpr int64_t kBins = 5, kDim = 4;
constexpr double kAlpha = 0.7;

class ValueEmbeddingTest : public ::testing::Test {
 protected:
  ValueEmbeddingTest()
      : source_(random_scfoundation(3, DType::f64)),
        embedding_(ParameterMaker(parameters_, source_),
                   {.bins = kBins, .dim = kDim, .alpha = kAlpha, .pad = 103, .mask = 102}) {}

  const double* data(const char* name) {
    return std::as_const(parameters_.find(cat("token_emb.", name))->value).as<double>();
  }
  // The definition, in plain loops.
  std::vector<double> row_of(double v) {
    std::vector<double> a(kBins), z(kBins), e(kDim);
    for (size_t i = 0; i < kBins; ++i) {
      const double x = data("mlp.weight")[i] * v + data("mlp.bias")[i];
      a[i] = x < 0 ? 0.1 * x : x;
    }
    double sum = 0;
    for (size_t i = 0; i < kBins; ++i) {
      z[i] = data("mlp2.bias")[i] + kAlpha * a[i];
      for (size_t j = 0; j < kBins; ++j) z[i] += data("mlp2.weight")[i * kBins + j] * a[j];
      sum += std::exp(z[i]);
    }
    for (size_t i = 0; i < kBins; ++i)
      for (size_t d = 0; d < kDim; ++d)
        e[d] += std::exp(z[i]) / sum * data("emb.weight")[i * kDim + d];
    return e;
  }
  // Rows of the distinct values, ascending.
  std::vector<double> rows_of(const std::vector<float>& values) {
    const std::vector<int32_t> entries(values.size(), 0);
    TokenBatch batch;
    const CellView cell{.cell = 0, .genes = entries, .values = values};
    batch.assign({&cell, 1});
    Arena::Scope scope(ctx_.activations());
    ValueEmbedding::Saved saved;
    return values_of(embedding_.forward(ctx_, batch, saved));
  }

  ParameterSet parameters_;
  ParameterSource source_;
  ValueEmbedding embedding_;
  Context ctx_{Device::cpu(), {.threads = 1}};
};

TEST_F(ValueEmbeddingTest, IsTheTableWeightedBySoftBins) {
  std::vector<double> want;
  for (const float v : {0.0f, 0.3f, 2.5f, 9.0f})
    for (const double e : row_of(static_cast<double>(v))) want.push_back(e);
  const std::vector<double> got = rows_of({2.5f, 0.0f, 9.0f, 0.3f, 2.5f});
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(got[i], want[i], 1e-12) << i;
}

// Compared exactly: a value beside the mask value is a number.
TEST_F(ValueEmbeddingTest, MaskAndPadHaveRowsOfTheirOwn) {
  const float beside = std::nextafter(102.0f, 0.0f);
  const std::vector<double> got = rows_of({103.0f, 1.0f, 102.0f, beside});
  std::vector<double> want = row_of(1);
  for (const double e : row_of(static_cast<double>(beside))) want.push_back(e);
  for (const char* name : {"emb_mask.weight", "emb_pad.weight"})
    want.insert(want.end(), data(name), data(name) + kDim);
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(got[i], want[i], 1e-12) << i;
}

TEST_F(ValueEmbeddingTest, ATrainedTableIsUsed) {
  const std::vector<double> before = rows_of({1.0f});
  Parameter* table = parameters_.find("token_emb.emb.weight");
  make_trainable({table});
  for (int64_t i = 0; i < table->value.numel(); ++i) table->value.as<double>()[i] *= 2;
  embedding_.parameters_updated();
  const std::vector<double> after = rows_of({1.0f});
  for (size_t i = 0; i < after.size(); ++i) EXPECT_NEAR(after[i], 2 * before[i], 1e-12);
}

}  // namespace
}  // namespace scgraft
