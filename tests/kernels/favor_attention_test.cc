// SPDX-License-Identifier: Apache-2.0
#include "kernels/favor_attention.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "tests/kernels/favor_call.h"

namespace scgraft {
namespace {

class FavorAttentionTest : public FavorTest {};
INSTANTIATE_OP_TEST(FavorAttentionTest);

TEST_P(FavorAttentionTest, OnlyTokenReturnsItsValue) {
  for (const FavorOptions& options : kAll) {
    FavorCall c = call({1, 0, 1}, 2, 8, 5, options);
    c.forward(ctx());
    expect_close(c.out.view(), values_of(c.v.view()), 16);
  }
}

TEST_P(FavorAttentionTest, EqualKeysAverageTheValues) {
  for (const FavorOptions& options : kAll) {
    FavorCall c = call({3}, 1, 2, 3, options);
    c.k = tensor({3, 2}, {1, -1, 1, -1, 1, -1});
    c.v = tensor({3, 2}, {1, 2, 3, 4, 8, 0});
    c.forward(ctx());
    expect_close(c.out.view(), {4, 2, 4, 2, 4, 2}, 9);
  }
}

TEST_P(FavorAttentionTest, HandComputed) {
  // head_dim 1, so c = 1. Keys 0 and 1: u = (0, 0) and (1, -1), s = 0 and 1/2, largest u is 1.
  FavorCall c = call({2}, 1, 1, 2);
  c.q = tensor({2, 1}, {0, 1});
  c.k = tensor({2, 1}, {0, 1});
  c.v = tensor({2, 1}, {3, 5});
  c.projection = tensor({2, 1}, {1, -1});
  c.forward(ctx());
  const double f = 1e-4, e1 = std::exp(-1.0), e2 = std::exp(-0.5), e3 = std::exp(-2.5);
  const double k0[2] = {e1 + f, e1 + f}, k1[2] = {e2 + f, e3 + f};
  const double q0[2] = {1 + f, 1 + f}, q1[2] = {e2 + f, e3 + f};
  std::vector<double> want;
  for (const double* q : {q0, q1}) {
    const double w0 = q[0] * k0[0] + q[1] * k0[1], w1 = q[0] * k1[0] + q[1] * k1[1];
    want.push_back((3 * w0 + 5 * w1) / (w0 + w1));
  }
  expect_close(c.out.view(), want, 4);
  expect_close(c.mass.view(), {k0[0] + k1[0], k0[1] + k1[1]}, 2);
  expect_close(c.sums.view(), {3 * k0[0] + 5 * k1[0], 3 * k0[1] + 5 * k1[1]}, 2);
  expect_close(c.largest.view(), {1.0});
  EXPECT_EQ(on_host(c.peak.view()).view().as<int64_t>()[0], 2);  // token 1, feature 0
}

TEST_P(FavorAttentionTest, ReluByHand) {
  // head_dim 16, so c = 1/2, and u of (x_0, x_1, 0 ...) is (x_0, x_1). A stabiliser that is asked
  // for is not there.
  FavorCall c = call({3}, 1, 16, 2, {FavorStabiliser::batch, FavorKernel::relu});
  const auto rows = [](std::initializer_list<std::pair<double, double>> pairs) {
    std::vector<double> all;
    for (const auto& [first, second] : pairs) {
      all.push_back(first);
      all.push_back(second);
      all.resize(all.size() + 14);
    }
    return all;
  };
  c.q = tensor({3, 16}, rows({{1, 2}, {-1, 1}, {0, 0}}));
  c.k = tensor({3, 16}, rows({{2, -1}, {-3, 4}, {0, 0}}));
  c.v = tensor({3, 16}, rows({{3, 0}, {5, 0}, {7, 0}}));
  c.dout = tensor({3, 16}, rows({{1, 0}, {0, 0}, {0, 0}}));
  c.projection = tensor({2, 16}, rows({{2, 0}, {0, 2}}));
  c.forward(ctx());
  c.backward(ctx());
  const double f = 1e-3;
  const double mass[2] = {2 + 3 * f, 4 + 3 * f}, sums[2] = {6 + 15 * f, 20 + 15 * f};
  const double q[3][2] = {{1 + f, 2 + f}, {f, 1 + f}, {f, f}};
  double out[3];
  for (int i = 0; i < 3; ++i)
    out[i] = (q[i][0] * sums[0] + q[i][1] * sums[1]) / (q[i][0] * mass[0] + q[i][1] * mass[1]);
  expect_close(c.mass.view(), {mass[0], mass[1]}, 3);
  expect_close(c.sums.view(), rows({{sums[0], 0}, {sums[1], 0}}), 3);
  expect_close(c.out.view(), rows({{out[0], 0}, {out[1], 0}, {out[2], 0}}), 4);
  EXPECT_EQ(values_of(c.largest.view()), std::vector<double>{0});
  EXPECT_EQ(on_host(c.peak.view()).view().as<int64_t>()[0], -1);
  // Of out_0 alone: u of key 2 is 0 in both features, of the others below it in one.
  const double n = q[0][0] * mass[0] + q[0][1] * mass[1];
  expect_close(
      c.dq.view(),
      rows({{(sums[0] - out[0] * mass[0]) / n, (sums[1] - out[0] * mass[1]) / n}, {0, 0}, {0, 0}}),
      16);
  expect_close(c.dk.view(),
               rows({{q[0][0] * (3 - out[0]) / n, 0}, {0, q[0][1] * (5 - out[0]) / n}, {0, 0}}),
               16);
  expect_close(c.dv.view(),
               rows({{(q[0][0] * (2 + f) + q[0][1] * f) / n, 0},
                     {(q[0][0] * f + q[0][1] * (4 + f)) / n, 0},
                     {(q[0][0] + q[0][1]) * f / n, 0}}),
               16);
}

TEST_P(FavorAttentionTest, FirstOfEqualLargestIsThePeak) {
  // Two features, two heads: both heads of tokens 1 and 2 reach 2 with feature 1.
  FavorCall c = call({3}, 2, 1, 2);
  c.projection = tensor({2, 1}, {1, 2});
  c.k = tensor({3, 2}, {0, 0, 1, 1, 1, 1});
  c.forward(ctx());
  EXPECT_EQ(on_host(c.peak.view()).view().as<int64_t>()[0], (1 * 2 + 0) * 2 + 1);
  c.k = tensor({3, 2}, {0, 0, 0, 1, 1, 0});
  c.forward(ctx());
  EXPECT_EQ(on_host(c.peak.view()).view().as<int64_t>()[0], (1 * 2 + 1) * 2 + 1);
}

// Equal ones in different spans and heads, and in features that different blocks own.
TEST_P(FavorAttentionTest, FirstOfEqualLargestOfALongCell) {
  const int64_t features = 150;
  FavorCall c = call({1100}, 2, 1, features);
  std::vector<double> omega(features, 0.5), k(2200, 0.1);
  omega[20] = omega[21] = omega[52] = omega[140] = 2;
  for (const size_t row : {2 * 1050, 2 * 1020 + 1, 2 * 1021}) k[row] = 3;
  c.projection = tensor({features, 1}, omega);
  c.k = tensor({1100, 2}, k);
  c.forward(ctx());
  EXPECT_EQ(on_host(c.peak.view()).view().as<int64_t>()[0], (2 * 1020 + 1) * features + 20);
  k[2 * 1020] = 3;
  c.k = tensor({1100, 2}, k);
  c.forward(ctx());
  EXPECT_EQ(on_host(c.peak.view()).view().as<int64_t>()[0], 2 * 1020 * features + 20);
}

TEST_P(FavorAttentionTest, BatchStabiliserIsTheLargestOfAllCells) {
  for (const FavorOptions& options : kSoftmax) {
    FavorCall c = call({2, 0, 1, 2}, 1, 1, 1, options);
    c.projection = tensor({1, 1}, {1});
    c.k = tensor({5, 1}, {1, 2, 4, 4, 3});
    c.forward(ctx());
    const Tensor peak = on_host(c.peak.view());
    const int64_t* at = peak.view().as<int64_t>();
    const std::vector<double> largest = values_of(c.largest.view());
    if (options.stabiliser == FavorStabiliser::batch) {
      EXPECT_EQ(largest, std::vector<double>(4, 4.0));
      EXPECT_EQ(std::vector<int64_t>(at, at + 4), (std::vector<int64_t>{-1, -1, 0, -1}));
    } else {
      EXPECT_EQ(largest, (std::vector<double>{2, -INFINITY, 4, 4}));
      EXPECT_EQ(std::vector<int64_t>(at, at + 4), (std::vector<int64_t>{1, -1, 0, 0}));
    }
  }
}

// The published formula as it stands: all features of a cell, the factor features^(-1/2) included.
TEST_P(FavorAttentionTest, AgreesWithTheFormulaWrittenOut) {
  const int64_t heads = 2, dim = 4, features = 6;
  for (const FavorOptions& options : kAll) {
    const bool relu = options.kernel == FavorKernel::relu;
    FavorCall c = call({7, 3}, heads, dim, features, options);
    c.forward(ctx());
    const std::vector<double> q = values_of(c.q.view()), k = values_of(c.k.view()),
                              v = values_of(c.v.view()), omega = values_of(c.projection.view());
    const double factor = std::pow(static_cast<double>(dim), -0.25);
    const auto u = [&](const std::vector<double>& x, int64_t token, int64_t head, int64_t j) {
      double sum = 0;
      for (int64_t d = 0; d < dim; ++d)
        sum += factor * x[static_cast<size_t>((token * heads + head) * dim + d)] *
               omega[static_cast<size_t>(j * dim + d)];
      return sum;
    };
    const auto phi = [&](const std::vector<double>& x, int64_t token, int64_t head, int64_t j,
                         double largest) {
      if (relu) return std::max(u(x, token, head, j), 0.0) + 1e-3;
      double half = 0;
      for (int64_t d = 0; d < dim; ++d)
        half += std::pow(factor * x[static_cast<size_t>((token * heads + head) * dim + d)], 2) / 2;
      return (std::exp(u(x, token, head, j) - half - largest) + 1e-4) /
             std::sqrt(static_cast<double>(features));
    };
    std::vector<double> want(q.size());
    const std::vector<std::pair<int64_t, int64_t>> ranges = {{0, 7}, {7, 10}};
    for (const auto& [begin, end] : ranges) {
      const bool batch = options.stabiliser == FavorStabiliser::batch;
      double key_largest = -INFINITY;
      for (int64_t m = batch ? 0 : begin; m < (batch ? 10 : end); ++m)
        for (int64_t head = 0; head < heads; ++head)
          for (int64_t j = 0; j < features; ++j)
            key_largest = std::max(key_largest, u(k, m, head, j));
      for (int64_t i = begin; i < end; ++i)
        for (int64_t head = 0; head < heads; ++head) {
          double largest = -INFINITY, total = 0;
          for (int64_t j = 0; j < features; ++j) largest = std::max(largest, u(q, i, head, j));
          std::vector<double> row(static_cast<size_t>(dim));
          for (int64_t m = begin; m < end; ++m) {
            double weight = 0;
            for (int64_t j = 0; j < features; ++j)
              weight += phi(q, i, head, j, largest) * phi(k, m, head, j, key_largest);
            total += weight;
            for (int64_t d = 0; d < dim; ++d)
              row[static_cast<size_t>(d)] +=
                  weight * v[static_cast<size_t>((m * heads + head) * dim + d)];
          }
          for (int64_t d = 0; d < dim; ++d)
            want[static_cast<size_t>((i * heads + head) * dim + d)] =
                row[static_cast<size_t>(d)] / total;
        }
    }
    expect_close(c.out.view(), want, 256);
  }
}

TEST_P(FavorAttentionTest, CellsWithoutTokens) {
  for (const std::vector<int32_t>& lengths :
       {std::vector<int32_t>{}, std::vector<int32_t>{0, 0}, std::vector<int32_t>{0, 2, 0}})
    for (const FavorOptions& options : kAll) {
      FavorCall c = call(lengths, 2, 4, 3, options);
      c.forward(ctx());
      c.backward(ctx());
      for (const double x : values_of(c.sums.view())) EXPECT_FALSE(std::isnan(x));
      for (const double x : values_of(c.dk.view())) EXPECT_FALSE(std::isnan(x));
      if (lengths.empty() || lengths.size() == 3) continue;
      for (const double x : values_of(c.mass.view())) EXPECT_EQ(x, 0);
      for (const double x : values_of(c.largest.view()))
        EXPECT_EQ(x, options.kernel == FavorKernel::relu ? 0 : -INFINITY);
    }
}

TEST_P(FavorAttentionTest, AgreesWithTheDefinitionInDoublePrecision) {
  if (is_f64()) GTEST_SKIP() << "the definition in double precision is the other side";
  struct Size {
    int64_t head_dim, features;
    std::vector<int32_t> lengths;
  };
  // The last cells have two spans, and three.
  const std::vector<Size> sizes = {
      {1, 7, {0, 1, 2, 3, 31, 33}}, {2, 3, {65, 1, 17}}, {8, 8, {64, 65}},
      {16, 44, {1, 0, 37, 129}},    {31, 33, {33, 31}},  {33, 65, {40}},
      {64, 266, {70, 3}},           {80, 70, {30}},      {128, 150, {40}},
      {8, 24, {17, 1025, 3}},       {4, 9, {2049}},
  };
  for (const Size& size : sizes)
    for (const FavorOptions& options : kAll) {
      // Both stabilisers for the narrow heads alone: the definition takes its time under
      // sanitizers.
      if (options.stabiliser == FavorStabiliser::batch && size.head_dim > 16) continue;
      SCOPED_TRACE(cat("head_dim ", size.head_dim, ", features ", size.features, ", relu ",
                       options.kernel == FavorKernel::relu));
      FavorCall c = call(size.lengths, 2, size.head_dim, size.features, options);
      FavorCall want = c.as_f64();
      c.forward(ctx());
      c.backward(ctx());
      Context reference = definition();
      want.forward(reference);
      want.backward(reference);
      expect_same_bits(on_host(c.peak.view()).view(), want.peak.view());
      std::vector<double> largest = values_of(c.largest.view());
      std::vector<double> want_largest = values_of(want.largest.view());
      for (size_t cell = 0; cell < largest.size(); ++cell)  // infinity minus infinity is no number
        if (largest[cell] == want_largest[cell]) largest[cell] = want_largest[cell] = 0;
      expect_close(tensor(c.largest.shape(), largest).view(), want_largest, size.head_dim);
      expect_close(c.sums.view(), values_of(want.sums.view()), 2049);
      expect_close(c.mass.view(), values_of(want.mass.view()), 2049);
      expect_close(c.out.view(), values_of(want.out.view()), 2049);
      expect_close(c.dq.view(), values_of(want.dq.view()), 2049);
      expect_close(c.dk.view(), values_of(want.dk.view()), 2049);
      expect_close(c.dv.view(), values_of(want.dv.view()), 2049);
    }
}

// The largest u of a span grows from panel to panel and from span to span and shrinks again: what
// was summed with a smaller shift must fade, what comes later must not grow.
TEST_P(FavorAttentionTest, ShiftChangesWithinACell) {
  for (const int64_t peak : {0, 700, 1490}) {
    FavorCall c = call({1500}, 1, 8, 12);
    std::vector<double> k = values_of(c.k.view());
    for (size_t i = 0; i < k.size(); ++i)
      k[i] *= static_cast<int64_t>(i) / 8 == peak ? 3.0 : i / 8 % 200 < 100 ? 0.05 : 0.5;
    c.k = tensor(c.k.shape(), k);
    FavorCall want = c.as_f64();
    c.forward(ctx());
    c.backward(ctx());
    Context reference = definition();
    want.forward(reference);
    want.backward(reference);
    expect_same_bits(on_host(c.peak.view()).view(), want.peak.view());
    expect_close(c.sums.view(), values_of(want.sums.view()), 2048);
    expect_close(c.mass.view(), values_of(want.mass.view()), 2048);
    expect_close(c.out.view(), values_of(want.out.view()), 2048);
    expect_close(c.dq.view(), values_of(want.dq.view()), 2048);
    expect_close(c.dk.view(), values_of(want.dk.view()), 2048);
    expect_close(c.dv.view(), values_of(want.dv.view()), 2048);
  }
}

TEST_P(FavorAttentionTest, GradientsMatchFiniteDifferences) {
  if (!is_f64()) GTEST_SKIP() << "finite differences are taken in f64 only";
  for (const FavorOptions& options : kAll) {
    FavorCall c = call({3, 0, 1, 4}, 2, 3, 5, options);
    c.forward(ctx());
    c.backward(ctx());
    const auto loss = [&] {
      c.forward(ctx());
      return dot(c.out.view(), c.dout.view());
    };
    expect_gradient(c.q, loss, c.dq.view());
    expect_gradient(c.k, loss, c.dk.view());
    expect_gradient(c.v, loss, c.dv.view());
  }
}

// With features below or beside the floor the maxima matter: differences must see their gradient.
TEST_P(FavorAttentionTest, GradientsOfTheMaximaMatchFiniteDifferences) {
  if (!is_f64()) GTEST_SKIP() << "finite differences are taken in f64 only";
  for (const FavorOptions& options : kSoftmax) {
    FavorCall c = call({3, 4}, 2, 3, 5, options, 4.0);
    c.forward(ctx());
    c.backward(ctx());
    const auto loss = [&] {
      c.forward(ctx());
      return dot(c.out.view(), c.dout.view());
    };
    expect_gradient(c.q, loss, c.dq.view());
    expect_gradient(c.k, loss, c.dk.view());
  }
}

TEST_P(FavorAttentionTest, ErrorsSayWhatWasWanted) {
  FavorCall c = call({2, 1}, 2, 4, 3);
  c.forward(ctx());
  c.heads = 3;
  expect_error("with 3 heads", [&] { c.forward(ctx()); });
  c.heads = 2;
  c.projection = random({3, 5});
  expect_error("the projection must be [features, 4]", [&] { c.forward(ctx()); });
  c.projection = random({3, 4});
  c.lengths = {2};
  expect_error("q has 3 tokens, the packing has 2", [&] { c.forward(ctx()); });
  c.lengths = {2, 1};
  c.forward(ctx());
  c.mass = zeros({2, 2, 4});
  expect_error("mass of the context must be [2, 2, 3]", [&] { c.backward(ctx()); });
}

// Gradients take the out of the call: dout . out cancels, which makes its rounding visible in them.
TEST_P(FavorAttentionTest, SixteenBitTypesAgreeWithTheDefinition) {
  if (!on_cuda()) GTEST_SKIP() << "the CPU computes in f32 and f64";
  struct Run {
    DType type;
    FavorOptions options;
  };
  const Run runs[] = {{DType::bf16, kSoftmax[0]},
                      {DType::f16, kSoftmax[1]},
                      {DType::bf16, kRelu},
                      {DType::f16, kRelu}};
  for (const Run& run : runs)
    for (const int64_t head_dim : {7, 16, 64, 128}) {
      SCOPED_TRACE(cat(run.type, ", head_dim ", head_dim, ", relu ",
                       run.options.kernel == FavorKernel::relu));
      store(run.type);
      FavorCall c = call({0, 1, 17, 70}, 2, head_dim, 44, run.options);
      FavorCall want = c.as_f64();
      Context reference = definition();
      c.forward(ctx());
      want.forward(reference);
      expect_close(c.out.view(), values_of(want.out.view()), 2048);
      expect_close(c.sums.view(), values_of(want.sums.view()), 2048);
      expect_close(c.mass.view(), values_of(want.mass.view()), 2048);
      want.out = in_f64(c.out);
      c.backward(ctx());
      want.backward(reference);
      expect_close(c.dq.view(), values_of(want.dq.view()), 2048);
      expect_close(c.dk.view(), values_of(want.dk.view()), 2048);
      expect_close(c.dv.view(), values_of(want.dv.view()), 2048);
    }
}

TEST_P(FavorAttentionTest, HeadsOnADeviceAreAtMost128Wide) {
  if (!on_cuda()) GTEST_SKIP() << "the CPU takes heads of any width";
  FavorCall c = call({3}, 1, 129, 5);
  expect_error("favor_attention: heads on cuda:0 are at most 128 wide, got 129",
               [&] { c.forward(ctx()); });
}

}  // namespace
}  // namespace scgraft
