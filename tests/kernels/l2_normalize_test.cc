// SPDX-License-Identifier: Apache-2.0
#include "kernels/l2_normalize.h"

#include <cmath>
#include <limits>

#include "kernels/require_tensor.h"
#include "tests/kernels/packed_cells.h"

namespace scgraft {
namespace {

class L2NormalizeTest : public OpTest {};
INSTANTIATE_OP_TEST(L2NormalizeTest);

TEST_P(L2NormalizeTest, HandComputed) {
  const Tensor x = tensor({3, 2}, {3, 4, 0, 0, 0, -2});
  Tensor y = poisoned({3, 2});
  Tensor norm = poisoned({3});
  l2_normalize(ctx(), x.view(), y.view(), norm.view());
  expect_close(y.view(), {0.6, 0.8, 0, 0, 0, -1});
  EXPECT_NEAR(values_of(norm.view())[0], 5, 1e-6);
  EXPECT_NEAR(values_of(norm.view())[1] * 1e12, 1, 1e-6);  // the floor
}

TEST_P(L2NormalizeTest, BackwardHandComputed) {
  // y = (0.6, 0.8), norm 5, dy = (1, 0): (dy - y * 0.6) / 5 = (0.64, -0.48) / 5.
  const Tensor y = tensor({1, 2}, {0.6, 0.8});
  const Tensor norm = tensor({1}, {5});
  const Tensor dy = tensor({1, 2}, {1, 0});
  Tensor dx = poisoned({1, 2});
  l2_normalize_backward(ctx(), y.view(), norm.view(), dy.view(), dx.view());
  expect_close(dx.view(), {0.128, -0.096});
}

// Below the floor y = x / 1e-12 is linear, so its derivative has no projection.
TEST_P(L2NormalizeTest, BelowTheFloorTheGradientIsAConstantFactor) {
  const Tensor x = tensor({1, 2}, {3e-13, 4e-13});
  Tensor y = poisoned({1, 2});
  Tensor norm = poisoned({1});
  l2_normalize(ctx(), x.view(), y.view(), norm.view());
  expect_close(y.view(), {0.3, 0.4}, 4);
  const Tensor dy = tensor({1, 2}, {1, 2});
  Tensor dx = poisoned({1, 2});
  l2_normalize_backward(ctx(), y.view(), norm.view(), dy.view(), dx.view());
  expect_close(dx.view(), {1e12, 2e12}, 4);
}

TEST_P(L2NormalizeTest, RowsHaveUnitLengthAtAwkwardSizes) {
  for (DType type : storage_types()) {
    SCOPED_TRACE(type);
    store(type);
    for (int64_t rows : {0, 1, 2, 3, 31, 33, 257})
      for (int64_t dim : {1, 2, 3, 31, 33, 257}) {
        const Tensor x = random({rows, dim}, 3);
        Tensor y = poisoned({rows, dim});
        Tensor norm = poisoned({rows}, sum_type(type));
        l2_normalize(ctx(), x.view(), y.view(), norm.view());
        const std::vector<double> in = values_of(x.view());
        std::vector<double> want = in;
        std::vector<double> lengths(static_cast<size_t>(rows));
        for (size_t r = 0; r < lengths.size(); ++r) {
          const size_t n = static_cast<size_t>(dim);
          double square = 0;
          for (size_t d = 0; d < n; ++d) square += in[r * n + d] * in[r * n + d];
          lengths[r] = std::sqrt(square);
          for (size_t d = 0; d < n; ++d) want[r * n + d] /= lengths[r];
        }
        expect_close(y.view(), want, dim);
        expect_close(norm.view(), lengths, dim);
      }
  }
}

TEST_P(L2NormalizeTest, BackwardAgreesWithTheF64Definition) {
  Context definition = reference_context();
  for (DType type : storage_types()) {
    store(type);
    for (int64_t dim : {2, 8, 33, 512}) {
      SCOPED_TRACE(cat(type, ", dim ", dim));
      const Tensor x = random({33, dim}, 3), dy = random({33, dim});
      Tensor y = poisoned({33, dim}), dx = poisoned({33, dim});
      Tensor norm = poisoned({33}, sum_type(type));
      l2_normalize(ctx(), x.view(), y.view(), norm.view());
      l2_normalize_backward(ctx(), y.view(), norm.view(), dy.view(), dx.view());
      Tensor want({33, dim}, DType::f64);
      l2_normalize_backward(definition, in_f64(y).view(), in_f64(norm).view(), in_f64(dy).view(),
                            want.view());
      expect_close(dx.view(), values_of(want.view()), dim);
    }
  }
}

TEST_P(L2NormalizeTest, NoNormAndInPlaceGiveTheSameBits) {
  for (DType type : storage_types()) {
    SCOPED_TRACE(type);
    store(type);
    const Tensor x = random({5, 33});
    Tensor y = poisoned({5, 33});
    Tensor norm = poisoned({5}, sum_type(type));
    l2_normalize(ctx(), x.view(), y.view(), norm.view());
    Tensor in_place = x.clone();
    l2_normalize(ctx(), in_place.view(), in_place.view(), {});
    expect_same_bits(in_place.view(), y.view());

    const Tensor dy = random({5, 33});
    Tensor dx = poisoned({5, 33});
    l2_normalize_backward(ctx(), y.view(), norm.view(), dy.view(), dx.view());
    Tensor dx_in_place = dy.clone();
    l2_normalize_backward(ctx(), y.view(), norm.view(), dx_in_place.view(), dx_in_place.view());
    expect_same_bits(dx_in_place.view(), dx.view());
  }
}

TEST_P(L2NormalizeTest, ANanInARowStaysInThatRow) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const Tensor x = tensor({2, 2}, {nan, 1, 3, 4});
  Tensor y = poisoned({2, 2});
  l2_normalize(ctx(), x.view(), y.view(), {});
  const std::vector<double> out = values_of(y.view());
  EXPECT_TRUE(std::isnan(out[0]) && std::isnan(out[1]));
  EXPECT_NEAR(out[2], 0.6, 1e-6);
}

TEST_P(L2NormalizeTest, GradientMatchesFiniteDifferences) {
  if (dtype() != DType::f64) GTEST_SKIP() << "finite differences are taken in f64";
  for (int64_t dim : {1, 3, 33}) {
    Tensor x = random({4, dim});
    const Tensor dy = random({4, dim});
    Tensor y = poisoned({4, dim});
    Tensor norm = poisoned({4});
    Tensor dx = poisoned({4, dim});
    l2_normalize(ctx(), x.view(), y.view(), norm.view());
    l2_normalize_backward(ctx(), y.view(), norm.view(), dy.view(), dx.view());
    expect_gradient(
        x,
        [&] {
          Tensor out = poisoned({4, dim});
          l2_normalize(ctx(), x.view(), out.view(), {});
          return dot(out.view(), dy.view());
        },
        dx.view());
  }
}

TEST_P(L2NormalizeTest, SameBitsForAnyThreadCountAndAnyBatch) {
  for (DType type : storage_types()) {
    SCOPED_TRACE(type);
    store(type);
    const Tensor x = random({67, 33});
    const Tensor dy = random({67, 33});
    Tensor y = poisoned({67, 33});
    Tensor norm = poisoned({67}, sum_type(type));
    Tensor dx = poisoned({67, 33});
    l2_normalize(ctx(), x.view(), y.view(), norm.view());
    l2_normalize_backward(ctx(), y.view(), norm.view(), dy.view(), dx.view());
    for (int threads : {1, 3, 8}) {
      Context other(test_device(), {.threads = threads, .reference = GetParam().reference});
      Tensor again = poisoned({67, 33});
      Tensor dx_again = poisoned({67, 33});
      l2_normalize(other, x.view(), again.view(), {});
      expect_same_bits(again.view(), y.view());
      l2_normalize_backward(other, y.view(), norm.view(), dy.view(), dx_again.view());
      expect_same_bits(dx_again.view(), dx.view());
    }
    Tensor last = poisoned({1, 33});
    l2_normalize(ctx(), x.view().rows(66, 67), last.view(), {});
    expect_same_bits(last.view(), y.view().rows(66, 67));
  }
}

TEST_P(L2NormalizeTest, ErrorsNameWhatWasWanted) {
  const Tensor x = zeros({2, 3});
  Tensor y = zeros({2, 4}), good = zeros({2, 3}), norm = zeros({3});
  expect_error("l2_normalize: y must be [2, 3], got [2, 4]",
               [&] { l2_normalize(ctx(), x.view(), y.view(), {}); });
  expect_error("l2_normalize: norm must be [2], got [3]",
               [&] { l2_normalize(ctx(), x.view(), good.view(), norm.view()); });
  expect_error("l2_normalize_backward: norm must be [2], got []",
               [&] { l2_normalize_backward(ctx(), x.view(), {}, x.view(), good.view()); });
  Tensor bad({2, 3}, DType::i32, test_device());
  expect_error("this operation computes on f32",
               [&] { l2_normalize(ctx(), bad.view(), bad.view(), {}); });
}

}  // namespace
}  // namespace scgraft
