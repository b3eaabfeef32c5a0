// SPDX-License-Identifier: Apache-2.0
#include "model/random_features.h"

#include <cmath>
#include <numeric>
#include <vector>

#include "runtime/random.h"
#include "tests/model/npz.h"
#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

std::vector<double> features_of(const std::vector<double>& draws, int64_t features,
                                int64_t head_dim) {
  std::vector<double> matrix(static_cast<size_t>(features * head_dim), NAN);
  orthogonal_features(draws, features, head_dim, matrix);
  return matrix;
}

TEST(RandomFeatures, HandComputed) {
  // The block [[3, 0], [4, 5]] is reflected to a first column of -5; the last one is left alone.
  // The second block is triangular already:
  // no reflection. The rows behind them have the norms 1, 5 and 13.
  const std::vector<double> got = features_of({3, 0, 4, 5, -1, 7, 0, 1, 0, 1, 3, 4, -5, 12}, 3, 2);
  const std::vector<double> want = {-0.6, -0.8, -0.8 * 5, 0.6 * 5, 13, 0};
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(got[i], want[i], 1e-14) << i;
}

TEST(RandomFeatures, AgreeWithTheOriginal) {
  const std::string path = "golden/scbert_projection_redraw/arrays.npz";
  SCGRAFT_NEEDS_SHARED(path);
  const Npz arrays(shared_path(path));
  for (const auto& [features, head_dim] : {std::pair<int64_t, int64_t>{44, 16}, {266, 64}}) {
    const std::string size = cat(features, "x", head_dim);
    std::vector<double> draws;
    for (int64_t i = 0; i <= (features + head_dim - 1) / head_dim; ++i) {
      const std::vector<double> more = arrays[cat("draw_", size, "_", i)].values;
      draws.insert(draws.end(), more.begin(), more.end());
    }
    const std::vector<double> got = features_of(draws, features, head_dim);
    const std::vector<double> want = arrays["projection_" + size].values;
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(got[i], want[i], 1e-5) << size << " " << i;
  }
}

TEST(RandomFeatures, AreOrthogonalWithinABlockAndAsLongAsDrawn) {
  const int64_t features = 23, d = 9;
  std::vector<double> draws(static_cast<size_t>(feature_draws(features, d)));
  RandomStream random(1, RandomUse::simulate);
  for (double& x : draws) x = random.normal();
  const std::vector<double> m = features_of(draws, features, d);
  const auto dot = [&](const double* a, const double* b) {
    return std::inner_product(a, a + d, b, 0.0);
  };
  const double* norms = draws.data() + 3 * d * d;
  for (int64_t a = 0; a < features; ++a)
    for (int64_t b = a / d * d; b <= a; ++b)
      EXPECT_NEAR(dot(&m[static_cast<size_t>(a * d)], &m[static_cast<size_t>(b * d)]),
                  a == b ? dot(norms + a * d, norms + a * d) : 0.0, 1e-12);
}

TEST(RandomFeatures, AreAFunctionOfSeedDrawAndLayer) {
  const auto drawn = [](uint64_t seed, uint32_t draw, uint32_t layer) {
    Tensor m({12, 8}, DType::f32);
    draw_features(seed, draw, layer, m.view());
    return values_of(m.view());
  };
  EXPECT_EQ(drawn(3, 2, 1), drawn(3, 2, 1));
  EXPECT_NE(drawn(3, 2, 1), drawn(4, 2, 1));
  EXPECT_NE(drawn(3, 2, 1), drawn(3, 1, 1));
  EXPECT_NE(drawn(3, 2, 1), drawn(3, 2, 0));
}

TEST(RandomFeatures, ErrorsSayWhatWasWanted) {
  std::vector<double> draws(10), matrix(6);
  EXPECT_THROW(orthogonal_features(draws, 3, 2, matrix), ShapeError);
}

}  // namespace
}  // namespace scgraft
