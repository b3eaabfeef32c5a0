// SPDX-License-Identifier: Apache-2.0
#include "kernels/cross_entropy.h"

#include <cmath>
#include <limits>

#include "kernels/require_tensor.h"
#include "tests/kernels/packed_cells.h"

namespace scgraft {
namespace {

class CrossEntropyTest : public OpTest {};
INSTANTIATE_OP_TEST(CrossEntropyTest);

TEST_P(CrossEntropyTest, HandComputed) {
  // softmax(0, ln 3) = (1/4, 3/4).
  const Tensor logits = tensor({2, 2}, {0, std::log(3.0), 0, std::log(3.0)});
  Tensor loss = poisoned({2}), dlogits = poisoned({2, 2});
  cross_entropy(ctx(), logits.view(), ints({0, 1}).view(), {}, 0.5, loss.view(), dlogits.view());
  expect_close(loss.view(), {std::log(4.0), std::log(4.0 / 3.0)}, 4);
  expect_close(dlogits.view(), {-0.375, 0.375, 0.125, -0.125}, 4);
}

TEST_P(CrossEntropyTest, WeightsScaleTheRowOfTheirClass) {
  const Tensor logits = tensor({2, 2}, {0, std::log(3.0), 0, std::log(3.0)});
  const Tensor weight = tensor({2}, {2, 10});
  Tensor loss = poisoned({2}), dlogits = poisoned({2, 2});
  // The mean of the loss weighted by class: scale is 1 / (2 + 10).
  cross_entropy(ctx(), logits.view(), ints({0, 1}).view(), weight.view(), 1.0 / 12, loss.view(),
                dlogits.view());
  expect_close(loss.view(), {2 * std::log(4.0), 10 * std::log(4.0 / 3.0)}, 4);
  expect_close(dlogits.view(), {-1.5 / 12, 1.5 / 12, 2.5 / 12, -2.5 / 12}, 4);
}

TEST_P(CrossEntropyTest, AFactorOnTheDeviceIsOneMoreOfTheGradient) {
  const Tensor logits = random({5, 7});
  const Tensor factor = tensor_of({1}, DType::f64, {1024}).to(test_device());
  const Tensor labels = ints({0, 6, -1, 3, 3});
  Tensor loss = poisoned({5}), want = poisoned({5, 7}), got = poisoned({5, 7});
  cross_entropy(ctx(), logits.view(), labels.view(), {}, 0.25 * 1024, loss.view(), want.view());
  cross_entropy(ctx(), logits.view(), labels.view(), {}, 0.25, loss.view(), got.view(),
                factor.view());
  expect_same_bits(got.view(), want.view());
}

TEST_P(CrossEntropyTest, ARowWithoutALabelCountsNothing) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const Tensor logits = tensor({2, 2}, {nan, nan, 0, 0});
  Tensor loss = poisoned({2}), dlogits = poisoned({2, 2});
  cross_entropy(ctx(), logits.view(), ints({-1, 0}).view(), {}, 1, loss.view(), dlogits.view());
  expect_close(loss.view(), {0, std::log(2.0)});
  expect_close(dlogits.view(), {0, 0, -0.5, 0.5});
}

TEST_P(CrossEntropyTest, LargeLogitsDoNotOverflow) {
  const double inf = std::numeric_limits<double>::infinity();
  const Tensor logits = tensor({2, 3}, {1e4, -1e4, -inf, -1e4, 1e4, -inf});
  Tensor loss = poisoned({2}), dlogits = poisoned({2, 3});
  cross_entropy(ctx(), logits.view(), ints({0, 0}).view(), {}, 1, loss.view(), dlogits.view());
  expect_close(loss.view(), {0, 2e4});
  expect_close(dlogits.view(), {0, 0, 0, -1, 1, 0});
}

TEST_P(CrossEntropyTest, ANanLogitGivesANanLoss) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const std::vector<double>& row : {std::vector<double>{nan, 0, 1}, {0, nan, 1}}) {
    Tensor loss = zeros({1});
    cross_entropy(ctx(), tensor({1, 3}, row).view(), ints({2}).view(), {}, 1, loss.view(), {});
    EXPECT_TRUE(std::isnan(values_of(loss.view())[0]));
  }
}

TEST_P(CrossEntropyTest, AgreesWithTheFormulaAtAwkwardSizes) {
  for (DType type : storage_types()) {
    SCOPED_TRACE(type);
    store(type);
    for (int64_t rows : {0, 1, 2, 3, 31, 33, 257})
      for (int64_t classes : {1, 2, 3, 31, 33, 257}) {
        const Tensor logits = random({rows, classes}, 2);
        const Tensor weight = random_values({classes}, sum_type(type), 1);
        std::vector<int32_t> label;
        for (int64_t b = 0; b < rows; ++b)
          label.push_back(static_cast<int32_t>((7 * b + 3) % classes));
        const std::vector<double> in = values_of(logits.view()), w = values_of(weight.view());
        std::vector<double> loss_want, gradient_want;
        for (size_t b = 0; b < label.size(); ++b) {
          const double* row = in.data() + b * static_cast<size_t>(classes);
          const double at_label = row[label[b]];
          double sum = 0;
          for (int64_t c = 0; c < classes; ++c) sum += std::exp(row[c] - at_label);
          const double factor = w[static_cast<size_t>(label[b])];
          loss_want.push_back(factor * std::log(sum));
          for (int64_t c = 0; c < classes; ++c)
            gradient_want.push_back(0.25 * factor *
                                    (std::exp(row[c] - at_label) / sum - (c == label[b])));
        }
        Tensor loss = poisoned({rows}, sum_type(type)), dlogits = poisoned({rows, classes});
        cross_entropy(ctx(), logits.view(), ints(label).view(), weight.view(), 0.25, loss.view(),
                      dlogits.view());
        expect_close(loss.view(), loss_want, classes);
        expect_close(dlogits.view(), gradient_want, classes);
      }
  }
}

TEST_P(CrossEntropyTest, InPlaceAndLossAloneGiveTheSameBits) {
  for (DType type : storage_types()) {
    SCOPED_TRACE(type);
    store(type);
    const Tensor logits = random({9, 33});
    const Tensor labels = ints({0, 32, 5, -1, 7, 8, 9, 10, 11});
    Tensor loss = poisoned({9}, sum_type(type)), dlogits = poisoned({9, 33});
    cross_entropy(ctx(), logits.view(), labels.view(), {}, 0.125, loss.view(), dlogits.view());
    Tensor alone = poisoned({9}, sum_type(type));
    cross_entropy(ctx(), logits.view(), labels.view(), {}, 0.125, alone.view(), {});
    expect_same_bits(alone.view(), loss.view());
    Tensor in_place = logits.clone();
    cross_entropy(ctx(), in_place.view(), labels.view(), {}, 0.125, alone.view(), in_place.view());
    expect_same_bits(alone.view(), loss.view());
    expect_same_bits(in_place.view(), dlogits.view());
  }
}

TEST_P(CrossEntropyTest, GradientOfARowSumsToZero) {
  const Tensor logits = random({3, 31});
  Tensor loss = poisoned({3}), dlogits = poisoned({3, 31});
  cross_entropy(ctx(), logits.view(), ints({0, 15, 30}).view(), {}, 1, loss.view(), dlogits.view());
  const std::vector<double> g = values_of(dlogits.view());
  for (size_t b = 0; b < 3; ++b) {
    double sum = 0;
    for (size_t c = 0; c < 31; ++c) sum += g[b * 31 + c];
    EXPECT_NEAR(sum, 0, tolerance(dtype(), 31).rtol);
  }
}

TEST_P(CrossEntropyTest, GradientMatchesFiniteDifferences) {
  if (dtype() != DType::f64) GTEST_SKIP() << "finite differences are taken in f64";
  Tensor logits = random({4, 5});
  const Tensor weight = tensor({5}, {1, 0.5, 2, 0, 3});
  const Tensor labels = ints({4, -1, 1, 2});
  const double scale = 1 / 5.5;
  Tensor loss = poisoned({4}), dlogits = poisoned({4, 5});
  cross_entropy(ctx(), logits.view(), labels.view(), weight.view(), scale, loss.view(),
                dlogits.view());
  expect_gradient(
      logits,
      [&] {
        Tensor out = poisoned({4});
        cross_entropy(ctx(), logits.view(), labels.view(), weight.view(), scale, out.view(), {});
        double sum = 0;
        for (double v : values_of(out.view())) sum += v;
        return scale * sum;
      },
      dlogits.view());
}

TEST_P(CrossEntropyTest, SameBitsForAnyThreadCountAndAnyBatch) {
  for (DType type : storage_types()) {
    SCOPED_TRACE(type);
    store(type);
    const Tensor logits = random({41, 33});
    const Tensor weight = random_values({33}, sum_type(type), 1);
    std::vector<int32_t> label;
    for (int32_t b = 0; b < 41; ++b) label.push_back(b % 34 - 1);
    Tensor loss = poisoned({41}, sum_type(type)), dlogits = poisoned({41, 33});
    cross_entropy(ctx(), logits.view(), ints(label).view(), weight.view(), 0.1, loss.view(),
                  dlogits.view());
    for (int threads : {1, 3, 8}) {
      Context other(test_device(), {.threads = threads, .reference = GetParam().reference});
      Tensor loss2 = poisoned({41}, sum_type(type)), dlogits2 = poisoned({41, 33});
      cross_entropy(other, logits.view(), ints(label).view(), weight.view(), 0.1, loss2.view(),
                    dlogits2.view());
      expect_same_bits(loss2.view(), loss.view());
      expect_same_bits(dlogits2.view(), dlogits.view());
    }
    Tensor loss1 = poisoned({1}, sum_type(type)), dlogits1 = poisoned({1, 33});
    cross_entropy(ctx(), logits.view().rows(19, 20), ints({label[19]}).view(), weight.view(), 0.1,
                  loss1.view(), dlogits1.view());
    expect_same_bits(loss1.view(), loss.view().rows(19, 20));
    expect_same_bits(dlogits1.view(), dlogits.view().rows(19, 20));
  }
}

// Labels on a device are not looked at by the host; a wrong one must not pass unseen all the same.
TEST_P(CrossEntropyTest, ALabelBehindTheClassesPoisonsItsRowOnCuda) {
  if (ctx().device().is_cpu()) GTEST_SKIP() << "on the CPU it is an error";
  const Tensor logits = zeros({2, 3});
  Tensor loss = zeros({2}), dlogits = zeros({2, 3});
  cross_entropy(ctx(), logits.view(), ints({0, 3}).view(), {}, 1, loss.view(), dlogits.view());
  expect_close(loss.view().rows(0, 1), {std::log(3.0)});
  expect_close(dlogits.view().rows(0, 1), {-2.0 / 3, 1.0 / 3, 1.0 / 3});
  EXPECT_TRUE(std::isnan(values_of(loss.view())[1]));
  for (double v : values_of(dlogits.view().rows(1, 2))) EXPECT_TRUE(std::isnan(v));
}

TEST_P(CrossEntropyTest, ErrorsNameTheRowAndTheLabel) {
  const Tensor logits = zeros({2, 3});
  Tensor loss = poisoned({2}), dlogits = poisoned({2, 3});
  if (ctx().device().is_cpu()) {
    expect_error("label 3 of row 1 must be below 3, the number of classes", [&] {
      cross_entropy(ctx(), logits.view(), ints({0, 3}).view(), {}, 1, loss.view(), dlogits.view());
    });
    EXPECT_TRUE(std::isnan(values_of(loss.view())[0])) << "written before the check";
  }
  expect_error("cross_entropy: labels must be i32, got i64", [&] {
    cross_entropy(ctx(), logits.view(), longs({0, 1}).view(), {}, 1, loss.view(), {});
  });
  expect_error("cross_entropy: weight must be [3], got [2]", [&] {
    cross_entropy(ctx(), logits.view(), ints({0, 1}).view(), zeros({2}).view(), 1, loss.view(), {});
  });
  Tensor short_loss = zeros({1});
  expect_error("cross_entropy: loss must be [2], got [1]", [&] {
    cross_entropy(ctx(), logits.view(), ints({0, 1}).view(), {}, 1, short_loss.view(), {});
  });
}

}  // namespace
}  // namespace scgraft
