// SPDX-License-Identifier: Apache-2.0
#include "kernels/masked_mse.h"

#include <cmath>
#include <limits>

#include "kernels/require_tensor.h"
#include "tests/kernels/packed_cells.h"

namespace scgraft {
namespace {

class MaskedMseTest : public OpTest {
 protected:
  Tensor every_third_left_out(int64_t n) const {
    std::vector<uint8_t> values;
    for (int64_t i = 0; i < n; ++i) values.push_back(i % 3 == 1 ? 0 : 1);
    return bytes(values);
  }
};
INSTANTIATE_OP_TEST(MaskedMseTest);

// Cells of 0, 1, 2, 3, 31, 33, 0, 64, 65, 257 and 0 tokens.
const std::vector<int32_t> kAwkward = {0, 0, 1, 3, 6, 37, 70, 70, 134, 199, 456, 456};

TEST_P(MaskedMseTest, HandComputed) {
  const std::vector<int32_t> offsets = {0, 3, 3, 4};
  const Tensor x = tensor({4}, {1, 2, 3, 4});
  const Tensor target = tensor({4}, {0, 0, 5, 1});
  Tensor loss = poisoned({3}), dx = poisoned({4});
  masked_mse(ctx(), x.view(), target.view(), bytes({1, 0, 255, 1}).view(), packing_over(offsets),
             0.5, loss.view(), dx.view());
  expect_close(loss.view(), {1 + 4, 0, 9});
  expect_close(dx.view(), {1, 0, -2, 3});
}

TEST_P(MaskedMseTest, AFactorOnTheDeviceIsOneMoreOfTheGradient) {
  const std::vector<int32_t> offsets = {0, 3, 3, 4};
  const Tensor x = random({4}), target = random({4}), mask = bytes({1, 0, 255, 1});
  const Tensor factor = tensor_of({1}, DType::f64, {1024}).to(test_device());
  Tensor loss = poisoned({3}), want = poisoned({4}), got = poisoned({4});
  masked_mse(ctx(), x.view(), target.view(), mask.view(), packing_over(offsets), 0.3 * 1024,
             loss.view(), want.view());
  masked_mse(ctx(), x.view(), target.view(), mask.view(), packing_over(offsets), 0.3, loss.view(),
             got.view(), factor.view());
  expect_same_bits(got.view(), want.view());
}

TEST_P(MaskedMseTest, WhatIsNotMaskedMayBeAnything) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (int32_t n : {3, 31, 33, 257}) {
    const std::vector<int32_t> offsets = {0, n};
    std::vector<double> values(static_cast<size_t>(n), nan);
    std::vector<uint8_t> counts(static_cast<size_t>(n), 0);
    values.back() = 3;
    counts.back() = 1;
    Tensor loss = poisoned({1}), dx = poisoned({n});
    masked_mse(ctx(), tensor({n}, values).view(), zeros({n}).view(), bytes(counts).view(),
               packing_over(offsets), 1, loss.view(), dx.view());
    expect_close(loss.view(), {9});
    std::vector<double> want(static_cast<size_t>(n), 0);
    want.back() = 6;
    expect_close(dx.view(), want);
  }
}

TEST_P(MaskedMseTest, NothingMaskedIsZero) {
  const std::vector<int32_t> offsets = {0, 2};
  Tensor loss = poisoned({1}), dx = poisoned({2});
  masked_mse(ctx(), tensor({2}, {1, 2}).view(), zeros({2}).view(), bytes({0, 0}).view(),
             packing_over(offsets), 0, loss.view(), dx.view());
  expect_same_bits(loss.view(), zeros({1}).view());
  expect_same_bits(dx.view(), zeros({2}).view());
}

TEST_P(MaskedMseTest, AgreesWithPlainSumsAtAwkwardSizes) {
  for (DType type : storage_types()) {
    SCOPED_TRACE(type);
    store(type);
    const Packing cells = packing_over(kAwkward);
    const Tensor x = random({456}), target = random_values({456}, sum_type(type), 1),
                 mask = every_third_left_out(456);
    const std::vector<double> p = values_of(x.view()), t = values_of(target.view());
    std::vector<double> loss_want(static_cast<size_t>(cells.cells())), dx_want(456);
    for (int64_t b = 0; b < cells.cells(); ++b)
      for (int64_t i = cells.begin(b); i < cells.end(b); ++i) {
        if (i % 3 == 1) continue;
        const double error = p[static_cast<size_t>(i)] - t[static_cast<size_t>(i)];
        loss_want[static_cast<size_t>(b)] += error * error;
        dx_want[static_cast<size_t>(i)] = 2 * error / 304;
      }
    Tensor loss = poisoned({cells.cells()}, sum_type(type)), dx = poisoned({456});
    masked_mse(ctx(), x.view(), target.view(), mask.view(), cells, 1.0 / 304, loss.view(),
               dx.view());
    expect_close(loss.view(), loss_want, 257);
    expect_close(dx.view(), dx_want);
  }
}

TEST_P(MaskedMseTest, InPlaceAndLossAloneGiveTheSameBits) {
  for (DType type : storage_types()) {
    SCOPED_TRACE(type);
    store(type);
    const Packing cells = packing_over(kAwkward);
    const Tensor x = random({456}), target = random_values({456}, sum_type(type), 1),
                 mask = every_third_left_out(456);
    Tensor loss = poisoned({11}, sum_type(type)), dx = poisoned({456}),
           alone = poisoned({11}, sum_type(type));
    masked_mse(ctx(), x.view(), target.view(), mask.view(), cells, 0.1, loss.view(), dx.view());
    masked_mse(ctx(), x.view(), target.view(), mask.view(), cells, 0.1, alone.view(), {});
    expect_same_bits(alone.view(), loss.view());
    Tensor in_place = x.clone();
    masked_mse(ctx(), in_place.view(), target.view(), mask.view(), cells, 0.1, alone.view(),
               in_place.view());
    expect_same_bits(alone.view(), loss.view());
    expect_same_bits(in_place.view(), dx.view());
  }
}

TEST_P(MaskedMseTest, GradientMatchesFiniteDifferences) {
  if (dtype() != DType::f64) GTEST_SKIP() << "finite differences are taken in f64";
  const std::vector<int32_t> offsets = {0, 2, 2, 7};
  const Packing cells = packing_over(offsets);
  Tensor x = random({7});
  const Tensor target = random({7}), mask = every_third_left_out(7);
  const double scale = 1.0 / 5;
  Tensor loss = poisoned({3}), dx = poisoned({7});
  masked_mse(ctx(), x.view(), target.view(), mask.view(), cells, scale, loss.view(), dx.view());
  expect_gradient(
      x,
      [&] {
        masked_mse(ctx(), x.view(), target.view(), mask.view(), cells, scale, loss.view(), {});
        double sum = 0;
        for (double v : values_of(loss.view())) sum += v;
        return scale * sum;
      },
      dx.view());
}

TEST_P(MaskedMseTest, SameBitsForAnyThreadCountAndAnyBatch) {
  for (DType type : storage_types()) {
    SCOPED_TRACE(type);
    store(type);
    const Packing cells = packing_over(kAwkward);
    const Tensor x = random({456}), target = random_values({456}, sum_type(type), 1),
                 mask = every_third_left_out(456);
    Tensor loss = poisoned({11}, sum_type(type)), dx = poisoned({456});
    masked_mse(ctx(), x.view(), target.view(), mask.view(), cells, 0.1, loss.view(), dx.view());
    for (int threads : {1, 3, 8}) {
      Context other(test_device(), {.threads = threads, .reference = GetParam().reference});
      Tensor loss2 = poisoned({11}, sum_type(type)), dx2 = poisoned({456});
      masked_mse(other, x.view(), target.view(), mask.view(), cells, 0.1, loss2.view(), dx2.view());
      expect_same_bits(loss2.view(), loss.view());
      expect_same_bits(dx2.view(), dx.view());
    }
    for (int64_t b = 0; b < cells.cells(); ++b) {
      const std::vector<int32_t> alone = {0, static_cast<int32_t>(cells.length(b))};
      const int64_t begin = cells.begin(b), end = cells.end(b);
      Tensor loss1 = poisoned({1}, sum_type(type));
      masked_mse(ctx(), x.view().rows(begin, end), target.view().rows(begin, end),
                 mask.view().rows(begin, end), packing_over(alone), 0.1, loss1.view(), {});
      expect_same_bits(loss1.view(), loss.view().rows(b, b + 1));
    }
  }
}

TEST_P(MaskedMseTest, ErrorsNameWhatWasWanted) {
  const std::vector<int32_t> offsets = {0, 2, 3};
  const Packing cells = packing_over(offsets);
  const Tensor x = zeros({3}), target = zeros({2}), mask = bytes({1, 1, 1});
  Tensor loss = zeros({2}), short_loss = zeros({1});
  expect_error("masked_mse: target must be [3], got [2]", [&] {
    masked_mse(ctx(), x.view(), target.view(), mask.view(), cells, 1, loss.view(), {});
  });
  expect_error("masked_mse: mask must be u8, got i32", [&] {
    masked_mse(ctx(), x.view(), x.view(), ints({1, 1, 1}).view(), cells, 1, loss.view(), {});
  });
  expect_error("masked_mse: loss must be [2], got [1]", [&] {
    masked_mse(ctx(), x.view(), x.view(), mask.view(), cells, 1, short_loss.view(), {});
  });
  expect_error("masked_mse: x has 2 tokens, the packing has 3", [&] {
    masked_mse(ctx(), target.view(), x.view(), mask.view(), cells, 1, loss.view(), {});
  });
}

}  // namespace
}  // namespace scgraft
