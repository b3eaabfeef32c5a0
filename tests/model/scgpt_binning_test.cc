// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

#include "model/numpy_random.h"
#include "model/preprocess.h"
#include "model/scgpt/binning.h"
#include "runtime/cat.h"
#include "runtime/error.h"
#include "runtime/random.h"
#include "tests/model/npz.h"
#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

constexpr const char* kGolden = "golden/tok_scgpt_binning/arrays.npz";

std::vector<float> binned(const std::vector<float>& values, int64_t n_bins,
                          const std::vector<double>& uniforms) {
  BinningScratch scratch;
  std::vector<float> bins(values.size(), -1.f);
  bin_values(values, n_bins, uniforms, bins, scratch);
  return bins;
}

// One row with zeros, as the published code bins it: uniforms are taken from `uniforms` in order.
std::vector<float> binned_row(const std::vector<float>& row, int64_t n_bins,
                              const std::vector<double>& uniforms, size_t& used) {
  std::vector<float> values;
  for (const float value : row)
    if (value != 0) values.push_back(value);
  const auto begin = uniforms.begin() + static_cast<int64_t>(used);
  const std::vector<float> bins = binned(
      values, n_bins, std::vector<double>(begin, begin + static_cast<int64_t>(values.size())));
  used += values.size();
  std::vector<float> all;
  size_t next = 0;
  for (const float value : row) all.push_back(value == 0 ? 0 : bins[next++]);
  return all;
}

void expect_recorded(const Npz& npz, const std::string& matrix, const std::string& prefix,
                     int64_t n_bins) {
  SCOPED_TRACE(prefix);
  const Npz::Array x = npz[matrix];
  const Npz::Array want = npz[prefix + "_binned"];
  const Npz::Array edges = npz[prefix + "_edges"];
  const std::vector<double> uniforms = npz[prefix + "_uniforms"].values;
  size_t used = 0;
  for (int64_t row = 0; row < x.shape[0]; ++row) {
    EXPECT_EQ(binned_row(x.row<float>(row), n_bins, uniforms, used), want.row<float>(row)) << row;
    std::vector<float> sorted;
    for (const float value : x.row<float>(row))
      if (value != 0) sorted.push_back(value);
    if (sorted.empty()) continue;
    std::sort(sorted.begin(), sorted.end());
    std::vector<double> got;
    quantile_edges(sorted, n_bins, got);
    std::vector<double> recorded = edges.row<double>(row);
    recorded.erase(recorded.begin());  // a 0 in front, which is not an edge
    EXPECT_EQ(got, recorded) << row;
  }
  EXPECT_EQ(used, uniforms.size());
}

TEST(ScgptBinningTest, IsTheOriginalBitForBit) {
  SCGRAFT_NEEDS_SHARED(kGolden);
  const Npz npz(shared_path(kGolden));
  expect_recorded(npz, "continuous_X", "continuous_float32_nb51", 51);
  expect_recorded(npz, "continuous_X", "continuous_float32_nb7", 7);
  expect_recorded(npz, "counts_X", "counts_float32_nb51", 51);
  expect_recorded(npz, "counts_X", "counts_float32_nb7", 7);
  expect_recorded(npz, "lognorm_X", "lognorm", 51);
  for (const int row : {0, 2, 3, 4, 5}) {
    const std::string prefix = "row" + std::to_string(row);
    EXPECT_EQ(binned(npz[prefix + "_values"].all<float>(), 51, npz[prefix + "_uniforms"].values),
              npz[prefix + "_binned"].all<float>());
  }
}

// f64 data is binned as f32: counts are exact in either, and the edges of values without ties lie
// between the same neighbours, so that the bins are the same.
TEST(ScgptBinningTest, DoublesGetTheRecordedBins) {
  SCGRAFT_NEEDS_SHARED(kGolden);
  const Npz npz(shared_path(kGolden));
  expect_recorded(npz, "counts_X", "counts_float64_nb51", 51);
  expect_recorded(npz, "counts_X", "counts_float64_nb7", 7);
  for (const int64_t n_bins : {51, 7}) {
    const std::string prefix = cat("continuous_float64_nb", n_bins);
    const std::vector<double> uniforms = npz[prefix + "_uniforms"].values;
    size_t used = 0;
    for (int64_t row = 0; row < npz["continuous_X"].shape[0]; ++row)
      EXPECT_EQ(binned_row(npz["continuous_X"].row<float>(row), n_bins, uniforms, used),
                npz[prefix + "_binned"].row<float>(row))
          << prefix << " " << row;
    EXPECT_EQ(used, uniforms.size());
  }
}

TEST(ScgptBinningTest, CountsAreNormalisedAndBinnedAsRecorded) {
  SCGRAFT_NEEDS_SHARED(kGolden);
  const Npz npz(shared_path(kGolden));
  const Npz::Array counts = npz["counts_X"];
  const Npz::Array lognorm = npz["lognorm_X"];
  const Npz::Array want = npz["lognorm_binned"];
  const std::vector<double> uniforms = npz["lognorm_uniforms"].values;
  size_t used = 0;
  for (int64_t row = 0; row < counts.shape[0]; ++row) {
    std::vector<float> values = counts.row<float>(row);
    normalise_log1p(values, total_of(values), 1e4);
    const std::vector<float> recorded = lognorm.row<float>(row);
    for (size_t i = 0; i < values.size(); ++i)  // the logarithm is the platform's: 1 ulp
      EXPECT_LE(std::abs(values[i] - recorded[i]),
                std::nextafter(recorded[i], INFINITY) - recorded[i]);
    EXPECT_EQ(binned_row(values, 51, uniforms, used), want.row<float>(row)) << row;
  }
}

TEST(ScgptBinningTest, TheLegacyGeneratorOfNumPyGivesTheRecordedUniforms) {
  SCGRAFT_NEEDS_SHARED(kGolden);
  const Npz npz(shared_path(kGolden));
  const auto seed = static_cast<uint32_t>(npz["seed_lognorm"].values[0]);
  NumpyRandom random(seed);
  for (const double want : npz["lognorm_uniforms"].values) EXPECT_EQ(random.uniform(), want);
}

TEST(ScgptBinningTest, DistinctValuesSpanAllBinsWhateverTheDraws) {
  std::vector<float> values;
  for (int i = 0; i < 200; ++i) values.push_back(static_cast<float>((i * 37) % 200) + 1.5f);
  const std::vector<float> low = binned(values, 51, std::vector<double>(values.size(), 0.0));
  const std::vector<float> high = binned(values, 51, std::vector<double>(values.size(), 0.999));
  EXPECT_EQ(low, high);
  EXPECT_EQ(*std::min_element(low.begin(), low.end()), 1);
  EXPECT_EQ(*std::max_element(low.begin(), low.end()), 50);
  for (size_t i = 0; i < values.size(); ++i)
    for (size_t j = 0; j < values.size(); ++j)
      if (values[i] < values[j]) {
        ASSERT_LE(low[i], low[j]);
      }
}

TEST(ScgptBinningTest, ATiedValueIsSpreadEvenlyOverItsBins) {
  // Nine in ten values are 1: they equal the first 45 edges or so.
  std::vector<float> values(1000, 1.f);
  for (size_t i = 0; i < 100; ++i) values[i * 10] = 2.f + static_cast<float>(i);
  std::vector<int64_t> drawn(51, 0);
  RandomStream random(3, RandomUse::binning_ties);
  constexpr int kRepeats = 100;
  for (int repeat = 0; repeat < kRepeats; ++repeat) {
    std::vector<double> uniforms(values.size());
    for (double& u : uniforms) u = random.uniform();
    const std::vector<float> bins = binned(values, 51, uniforms);
    for (size_t i = 0; i < values.size(); ++i)
      if (values[i] == 1) ++drawn[static_cast<size_t>(bins[i])];
  }
  const int64_t tied = std::count_if(drawn.begin(), drawn.end(), [](int64_t n) { return n > 0; });
  EXPECT_EQ(tied, 45);  // edges at 0/49 to 44/49 of 1000 values, 900 of them 1
  const double expected = 900.0 * kRepeats / static_cast<double>(tied);
  double chi2 = 0;
  for (int64_t bin = 1; bin <= tied; ++bin) {
    const double off = static_cast<double>(drawn[static_cast<size_t>(bin)]) - expected;
    chi2 += off * off / expected;
  }
  EXPECT_LT(chi2, 78.75);  // 99.9 % of chi-square with 44 degrees of freedom
}

TEST(ScgptBinningTest, OneValueAndNone) {
  EXPECT_THAT(binned({3.f}, 51, {0.0}), ::testing::ElementsAre(50.f));
  EXPECT_THAT(binned({3.f}, 51, {0.9999}), ::testing::ElementsAre(1.f));
  EXPECT_TRUE(binned({}, 51, {}).empty());
}

TEST(ScgptBinningTest, FewerThanThreeBinsAreRefused) {
  BinningScratch scratch;
  std::vector<float> bins(1);
  const std::vector<float> one = {1.f};
  const std::vector<double> u = {0.5};
  EXPECT_THROW(bin_values(one, 2, u, bins, scratch), ConfigError);
}

}  // namespace
}  // namespace scgraft
