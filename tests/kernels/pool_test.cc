// SPDX-License-Identifier: Apache-2.0
#include "kernels/pool.h"

#include <cmath>
#include <limits>
#include <numeric>

#include "tests/kernels/packed_cells.h"

namespace scgraft {
namespace {

class PoolTest : public OpTest {
 protected:
  // Offsets of cells with these lengths; kept by the fixture, because a Packing does not own them.
  Packing packing(const std::vector<int32_t>& lengths) {
    offsets_.assign(1, 0);
    for (int32_t n : lengths) offsets_.push_back(offsets_.back() + n);
    return packing_over(offsets_);
  }
  std::vector<int32_t> offsets_;
};
INSTANTIATE_OP_TEST(PoolTest);

const std::vector<int32_t> kAwkward = {0, 1, 2, 0, 3, 31, 33, 64, 65, 257, 0};

TEST_P(PoolTest, MeanAveragesTheTokensOfEachCell) {
  const Tensor x = tensor({3, 2}, {0, 1, 2, 3, 10, 20});
  Tensor y = poisoned({3, 2});
  pool(ctx(), Pooling::mean, x.view(), {}, packing({2, 0, 1}), y.view());
  expect_close(y.view(), {1, 2, 0, 0, 10, 20});
}

TEST_P(PoolTest, ClsTakesTheFirstToken) {
  const Tensor x = tensor({3, 2}, {0, 1, 2, 3, 10, 20});
  Tensor y = poisoned({3, 2});
  pool(ctx(), Pooling::cls, x.view(), {}, packing({0, 2, 1}), y.view());
  expect_close(y.view(), {0, 0, 0, 1, 10, 20});
}

TEST_P(PoolTest, WeightedSumsWithoutDividing) {
  const Tensor x = tensor({3, 2}, {0, 1, 2, 3, 10, 20});
  const Tensor weight = tensor({3}, {2, 0.5, -1});
  Tensor y = poisoned({2, 2});
  pool(ctx(), Pooling::weighted, x.view(), weight.view(), packing({2, 1}), y.view());
  expect_close(y.view(), {1, 3.5, -10, -20});
}

TEST_P(PoolTest, AgreesWithAPlainSumAtAwkwardSizes) {
  for (DType type : storage_types()) {
    SCOPED_TRACE(type);
    store(type);
    for (int64_t dim : {0, 1, 2, 3, 31, 33, 257}) {
      const Packing cells = packing(kAwkward);
      const Tensor x = random({cells.tokens(), dim});
      const Tensor weight = random({cells.tokens()});
      const std::vector<double> value = values_of(x.view());
      const std::vector<double> w = values_of(weight.view());
      std::vector<double> mean(static_cast<size_t>(cells.cells() * dim));
      std::vector<double> weighted = mean;
      for (int64_t b = 0; b < cells.cells(); ++b)
        for (int64_t t = cells.begin(b); t < cells.end(b); ++t)
          for (int64_t d = 0; d < dim; ++d) {
            const double v = value[static_cast<size_t>(t * dim + d)];
            mean[static_cast<size_t>(b * dim + d)] += v / static_cast<double>(cells.length(b));
            weighted[static_cast<size_t>(b * dim + d)] += v * w[static_cast<size_t>(t)];
          }
      Tensor y = poisoned({cells.cells(), dim});
      pool(ctx(), Pooling::mean, x.view(), {}, cells, y.view());
      expect_close(y.view(), mean, 257);
      y = poisoned({cells.cells(), dim});
      pool(ctx(), Pooling::weighted, x.view(), weight.view(), cells, y.view());
      expect_close(y.view(), weighted, 257);
    }
  }
}

TEST_P(PoolTest, BackwardHandComputed) {
  const Tensor dy = tensor({2, 2}, {6, 3, 1, 2});
  const Tensor weight = tensor({4}, {2, 0, -1, 5});
  const Packing cells = packing({3, 1});
  Tensor dx = poisoned({4, 2});
  pool_backward(ctx(), Pooling::cls, dy.view(), {}, cells, dx.view());
  expect_close(dx.view(), {6, 3, 0, 0, 0, 0, 1, 2});
  dx = poisoned({4, 2});
  pool_backward(ctx(), Pooling::mean, dy.view(), {}, cells, dx.view());
  expect_close(dx.view(), {2, 1, 2, 1, 2, 1, 1, 2});
  dx = poisoned({4, 2});
  pool_backward(ctx(), Pooling::weighted, dy.view(), weight.view(), cells, dx.view());
  expect_close(dx.view(), {12, 6, 0, 0, -6, -3, 5, 10});
}

// Every kind is linear in x, so <pool(x), dy> = <x, pool_backward(dy)> for all x and dy.
TEST_P(PoolTest, BackwardIsTheTransposeAtAwkwardSizes) {
  for (DType type : storage_types()) {
    SCOPED_TRACE(type);
    store(type);
    const Packing cells = packing(kAwkward);
    for (int64_t dim : {1, 33}) {
      for (Pooling kind : {Pooling::cls, Pooling::mean, Pooling::weighted}) {
        const Tensor x = random({cells.tokens(), dim});
        const Tensor dy = random({cells.cells(), dim});
        const Tensor weight = random({cells.tokens()});
        const ConstTensorView w = kind == Pooling::weighted ? weight.view() : ConstTensorView();
        Tensor y = poisoned({cells.cells(), dim});
        Tensor dx = poisoned({cells.tokens(), dim});
        pool(ctx(), kind, x.view(), w, cells, y.view());
        pool_backward(ctx(), kind, dy.view(), w, cells, dx.view());
        const double scale = std::sqrt(dot(y.view(), y.view()) * dot(dy.view(), dy.view()));
        EXPECT_NEAR(dot(y.view(), dy.view()), dot(x.view(), dx.view()),
                    tolerance(dtype(), 257).rtol * scale);
      }
    }
  }
}

TEST_P(PoolTest, GradientMatchesFiniteDifferences) {
  if (dtype() != DType::f64) GTEST_SKIP() << "finite differences are taken in f64";
  const Packing cells = packing({0, 2, 1, 3});
  Tensor x = random({6, 3});
  const Tensor weight = random({6});
  const Tensor dy = random({4, 3});
  for (Pooling kind : {Pooling::cls, Pooling::mean, Pooling::weighted}) {
    const ConstTensorView w = kind == Pooling::weighted ? weight.view() : ConstTensorView();
    Tensor dx = poisoned({6, 3});
    pool_backward(ctx(), kind, dy.view(), w, cells, dx.view());
    expect_gradient(
        x,
        [&] {
          Tensor y = poisoned({4, 3});
          pool(ctx(), kind, x.view(), w, cells, y.view());
          return dot(y.view(), dy.view());
        },
        dx.view());
  }
}

TEST_P(PoolTest, SameBitsForAnyThreadCountAndAnyBatch) {
  for (DType type : storage_types()) {
    SCOPED_TRACE(type);
    store(type);
    const Packing cells = packing(kAwkward);
    const int64_t dim = 515;
    const Tensor x = random({cells.tokens(), dim});
    const Tensor weight = random({cells.tokens()});
    const Tensor dy = random({cells.cells(), dim});
    for (Pooling kind : {Pooling::cls, Pooling::mean, Pooling::weighted}) {
      const bool weighted = kind == Pooling::weighted;
      const ConstTensorView w = weighted ? weight.view() : ConstTensorView();
      Tensor y = poisoned({cells.cells(), dim});
      Tensor dx = poisoned({cells.tokens(), dim});
      pool(ctx(), kind, x.view(), w, cells, y.view());
      pool_backward(ctx(), kind, dy.view(), w, cells, dx.view());
      for (int threads : {1, 3, 8}) {
        Context other(test_device(), {.threads = threads, .reference = GetParam().reference});
        Tensor again = poisoned({cells.cells(), dim});
        pool(other, kind, x.view(), w, cells, again.view());
        expect_same_bits(again.view(), y.view());
        Tensor dx_again = poisoned({cells.tokens(), dim});
        pool_backward(other, kind, dy.view(), w, cells, dx_again.view());
        expect_same_bits(dx_again.view(), dx.view());
      }
      for (int64_t b = 0; b < cells.cells(); ++b) {
        const std::vector<int32_t> alone = {0, static_cast<int32_t>(cells.length(b))};
        const int64_t begin = cells.begin(b), end = cells.end(b);
        Tensor single = poisoned({1, dim});
        pool(ctx(), kind, x.view().rows(begin, end), weighted ? w.rows(begin, end) : w,
             packing_over(alone), single.view());
        expect_same_bits(single.view(), std::as_const(y).view().rows(b, b + 1));
      }
    }
  }
}

TEST_P(PoolTest, MaxTakesTheLargestOfEveryFeature) {
  const Tensor x = tensor({4, 3}, {0, 7, -3, 2, 7, -1, 10, 20, -5, 10, 19, -5});
  const Tensor dy = tensor({3, 3}, {1, 2, 3, 4, 5, 6, 7, 8, 9});
  const Packing cells = packing({2, 0, 2});
  Tensor y = poisoned({3, 3}), dx = poisoned({4, 3});
  Tensor at({3, 3}, DType::i32, test_device());
  pool_max(ctx(), x.view(), cells, y.view(), at.view());
  expect_close(y.view(), {2, 7, -1, 0, 0, 0, 10, 20, -5});
  EXPECT_THAT(values_of(at.view()), ::testing::ElementsAre(1, 0, 1, -1, -1, -1, 2, 2, 2));
  pool_max_backward(ctx(), dy.view(), at.view(), cells, dx.view());
  expect_close(dx.view(), {0, 2, 0, 1, 0, 3, 7, 8, 9, 0, 0, 0});
}

TEST_P(PoolTest, MaxAgreesWithAPlainSearchAtAwkwardSizes) {
  for (DType type : storage_types()) {
    SCOPED_TRACE(type);
    store(type);
    for (int64_t dim : {0, 1, 2, 3, 8, 31, 33, 136, 257}) {
      const Packing cells = packing(kAwkward);
      // Few values, so that many are equal.
      std::vector<double> value = values_of(random({cells.tokens(), dim}).view());
      for (double& v : value) v = std::round(4 * v) / 4;
      const Tensor x = tensor_of({cells.tokens(), dim}, type, value);
      const Tensor dy = random({cells.cells(), dim});
      const std::vector<double> gradient = values_of(dy.view());
      std::vector<double> want(static_cast<size_t>(cells.cells() * dim)), where = want;
      std::vector<double> dwant(value.size());
      for (int64_t b = 0; b < cells.cells(); ++b)
        for (int64_t d = 0; d < dim; ++d) {
          int64_t best = cells.length(b) > 0 ? cells.begin(b) : -1;
          for (int64_t t = cells.begin(b); t < cells.end(b); ++t)
            if (value[static_cast<size_t>(t * dim + d)] >
                value[static_cast<size_t>(best * dim + d)])
              best = t;
          const auto i = static_cast<size_t>(b * dim + d);
          where[i] = static_cast<double>(best);
          if (best < 0) continue;
          want[i] = value[static_cast<size_t>(best * dim + d)];
          dwant[static_cast<size_t>(best * dim + d)] = gradient[i];
        }
      Tensor y = poisoned({cells.cells(), dim}), dx = poisoned({cells.tokens(), dim});
      Tensor at({cells.cells(), dim}, DType::i32, test_device());
      pool_max(ctx(), x.view(), cells, y.view(), at.view());
      EXPECT_EQ(values_of(y.view()), want);
      EXPECT_EQ(values_of(at.view()), where);
      pool_max_backward(ctx(), dy.view(), at.view(), cells, dx.view());
      EXPECT_EQ(values_of(dx.view()), dwant);
    }
  }
}

TEST_P(PoolTest, MaxKeepsANanVisible) {
  std::vector<double> values(80, 1.0);
  values[33] = std::numeric_limits<double>::quiet_NaN();
  const Tensor x = tensor({40, 2}, values);
  Tensor y = zeros({1, 2}), at({1, 2}, DType::i32, test_device());
  pool_max(ctx(), x.view(), packing({40}), y.view(), at.view());
  EXPECT_EQ(values_of(y.view())[0], 1);
  EXPECT_TRUE(std::isnan(values_of(y.view())[1]));
}

TEST_P(PoolTest, ErrorsNameWhatWasWanted) {
  const Tensor x = zeros({3, 4});
  Tensor y = zeros({2, 3});
  const Packing cells = packing({1, 2});
  expect_error("pool: y must be [2, 4], got [2, 3]",
               [&] { pool(ctx(), Pooling::mean, x.view(), {}, cells, y.view()); });
  expect_error("pool: x has 3 tokens, the packing has 5",
               [&] { pool(ctx(), Pooling::mean, x.view(), {}, packing({5}), y.view()); });
  expect_error("the packing has no offsets",
               [&] { pool(ctx(), Pooling::mean, x.view(), {}, Packing(), y.view()); });
  const Packing three = packing({1, 2});
  Tensor good = zeros({2, 4});
  expect_error("weight must be [3], got []",
               [&] { pool(ctx(), Pooling::weighted, x.view(), {}, three, good.view()); });
  const Tensor weight = zeros({3});
  expect_error("weights are only for weighted pooling",
               [&] { pool(ctx(), Pooling::cls, x.view(), weight.view(), three, good.view()); });
  Tensor at = zeros({2, 4});
  expect_error("pool_max: at must be i32",
               [&] { pool_max(ctx(), x.view(), three, good.view(), at.view()); });
  Tensor dx = zeros({12});
  expect_error("pool_backward: dx must be [tokens, dim], got [12]", [&] {
    pool_backward(ctx(), Pooling::mean, std::as_const(good).view(), {}, three, dx.view());
  });
  Tensor whole({3, 4}, DType::i32, test_device()), out({2, 4}, DType::i32, test_device());
  expect_error("this operation computes on f32",
               [&] { pool(ctx(), Pooling::mean, whole.view(), {}, three, out.view()); });
}

}  // namespace
}  // namespace scgraft
