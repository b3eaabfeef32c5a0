// SPDX-License-Identifier: Apache-2.0
#include "kernels/adamw.h"

#include <array>
#include <cmath>
#include <limits>

#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

class GradientNormTest : public OpTest {
 protected:
  double norm_of(const Tensor& gradient) {
    Tensor norm = tensor_of({1}, DType::f64, {-1});
    gradient_norm(ctx(), gradient.view(), norm.view());
    return values_of(norm.view())[0];
  }
};
INSTANTIATE_OP_TEST(GradientNormTest);

TEST_P(GradientNormTest, HandComputed) {
  EXPECT_DOUBLE_EQ(norm_of(tensor({3}, {3, 0, -4})), 5);
  EXPECT_EQ(norm_of(zeros({0})), 0);
}

TEST_P(GradientNormTest, AgreesWithAPlainSumAcrossBlocks) {
  for (int64_t n : {1, 2, 3, 31, 33, 257, 4095, 4096, 4097, 70001}) {
    const Tensor g = random({n});
    EXPECT_NEAR(norm_of(g), std::sqrt(dot(g.view(), g.view())), 1e-12 * std::sqrt(n));
  }
}

TEST_P(GradientNormTest, LargeF32ValuesDoNotOverflow) {
  EXPECT_NEAR(norm_of(tensor({2}, {3e38, 3e38})) / 1e38, 3 * std::sqrt(2.0), 1e-5);
}

TEST_P(GradientNormTest, IsNotFiniteWhenAnElementIsNot) {
  for (double bad :
       {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity(),
        -std::numeric_limits<double>::infinity()})
    for (size_t where : {0u, 31u, 4096u, 4999u}) {
      std::vector<double> values(5000, 1);
      values[where] = bad;
      EXPECT_FALSE(std::isfinite(norm_of(tensor({5000}, values)))) << bad << " at " << where;
    }
}

TEST_P(GradientNormTest, SameBitsForAnyThreadCount) {
  const Tensor g = random({300001});
  const double want = norm_of(g);
  for (int threads : {1, 3, 8}) {
    Context other(test_device(), {.threads = threads, .reference = GetParam().reference});
    Tensor norm({1}, DType::f64, test_device());
    gradient_norm(other, g.view(), norm.view());
    EXPECT_EQ(values_of(norm.view())[0], want);
    EXPECT_EQ(other.scratch().used(), 0);
  }
}

TEST_P(GradientNormTest, ErrorsNameWhatWasWanted) {
  const Tensor g = zeros({2, 2}), flat = zeros({4});
  Tensor norm({1}, DType::f32, test_device()), wide({2}, DType::f64, test_device());
  expect_error("gradient must be flat [n], got [2, 2]",
               [&] { gradient_norm(ctx(), g.view(), wide.view()); });
  expect_error("gradient_norm: norm must be f64, got f32",
               [&] { gradient_norm(ctx(), flat.view(), norm.view()); });
  expect_error("gradient_norm: norm must be [1], got [2]",
               [&] { gradient_norm(ctx(), flat.view(), wide.view()); });
}

// A flat parameter block with its optimizer state.
struct Block {
  Tensor p, m, v;
  Block clone() const { return {p.clone(), m.clone(), v.clone()}; }
};

class AdamWTest : public OpTest {
 protected:
  Block fresh(const std::vector<double>& values) {
    const Shape shape{static_cast<int64_t>(values.size())};
    return {tensor(shape, values), zeros(shape), zeros(shape)};
  }
  Block random_block(int64_t n) {
    Block b{random({n}), random({n}), random({n})};
    std::vector<double> v = values_of(b.v.view());
    for (double& x : v) x = std::abs(x);
    b.v = tensor({n}, v);
    return b;
  }
  static bool step(Context& ctx, Block& b, const Tensor& gradient, const AdamWOptions& options,
                   std::span<const AdamWSegment> segments) {
    Tensor norm({1}, DType::f64, test_device());
    gradient_norm(ctx, gradient.view(), norm.view());
    return adamw(ctx, b.p.view(), gradient.view(), b.m.view(), b.v.view(),
                 std::as_const(norm).view(), options, segments);
  }
  static void expect_same(const Block& got, const Block& want) {
    expect_same_bits(got.p.view(), want.p.view());
    expect_same_bits(got.m.view(), want.m.view());
    expect_same_bits(got.v.view(), want.v.view());
  }
};
INSTANTIATE_OP_TEST(AdamWTest);

constexpr int64_t kRoundings = 64;  // of the three steps below, generously

// In the first step m / (1 - beta1) = g and v / (1 - beta2) = g^2: p becomes
// 1 * (1 - 0.1 * 0.2) - 0.1 * sign(g). The other two were worked out with the formula in f64.
TEST_P(AdamWTest, ThreeStepsHandComputed) {
  Block b = fresh({1});
  const AdamWSegment all{.begin = 0, .end = 1, .weight_decay = 0.2};
  const std::array<double, 3> gradient = {0.5, -1, 0.25};
  const std::array<double, 3> p = {0.880000002, 0.8989607728317225, 0.8946596158369925};
  const std::array<double, 3> m = {0.05, -0.055, -0.0245};
  const std::array<double, 3> v = {0.0025, 0.012475, 0.01297525};
  for (size_t i = 0; i < 3; ++i) {
    const AdamWOptions options{.learning_rate = 0.1,
                               .beta1 = 0.9,
                               .beta2 = 0.99,
                               .eps = 1e-8,
                               .step = static_cast<int64_t>(i) + 1};
    ASSERT_TRUE(step(ctx(), b, tensor({1}, {gradient[i]}), options, {&all, 1}));
    // The last digits of the numbers above are 1e-16.
    expect_close(b.p.view(), {p[i]}, kRoundings);
    expect_close(b.m.view(), {m[i]}, kRoundings);
    expect_close(b.v.view(), {v[i]}, kRoundings);
  }
}

// eps is added to the root of the corrected v: with g = eps the first step is half of a step.
TEST_P(AdamWTest, EpsStandsOutsideTheRootOfTheCorrectedMoment) {
  Block b = fresh({0});
  const AdamWSegment all{.begin = 0, .end = 1};
  const AdamWOptions options{.learning_rate = 0.1, .eps = 1e-3};
  ASSERT_TRUE(step(ctx(), b, tensor({1}, {1e-3}), options, {&all, 1}));
  expect_close(b.p.view(), {-0.05}, kRoundings);
}

// Decay is decoupled: it neither enters the moments nor is it divided by their root.
TEST_P(AdamWTest, DecayLeavesTheMomentsAlone) {
  Block b = fresh({2, -3});
  const AdamWSegment all{.begin = 0, .end = 2, .weight_decay = 0.5};
  ASSERT_TRUE(step(ctx(), b, zeros({2}), {.learning_rate = 0.1}, {&all, 1}));
  expect_close(b.p.view(), {1.9, -2.85});
  expect_same_bits(b.m.view(), zeros({2}).view());
  expect_same_bits(b.v.view(), zeros({2}).view());
}

TEST_P(AdamWTest, ClippingScalesTheGradientToTheNorm) {
  const AdamWSegment all{.begin = 0, .end = 2};
  Block b = fresh({0, 0});
  ASSERT_TRUE(step(ctx(), b, tensor({2}, {3, 4}), {.max_norm = 1}, {&all, 1}));
  expect_close(b.m.view(), {0.06, 0.08}, kRoundings);
  expect_close(b.v.view(), {0.00036, 0.00064}, kRoundings);
}

TEST_P(AdamWTest, AGradientInsideTheNormIsNotClipped) {
  const AdamWSegment all{.begin = 0, .end = 3};
  const Tensor gradient = tensor({3}, {3, 0, 4});
  for (double max_norm : {5.0, 6.0}) {
    Block clipped = fresh({1, 2, 3}), free = fresh({1, 2, 3});
    ASSERT_TRUE(step(ctx(), clipped, gradient, {.max_norm = max_norm}, {&all, 1}));
    ASSERT_TRUE(step(ctx(), free, gradient, {}, {&all, 1}));
    expect_same(clipped, free);
  }
  Block still = fresh({1, 2, 3});
  ASSERT_TRUE(step(ctx(), still, zeros({3}), {.max_norm = 1}, {&all, 1}));
  expect_close(still.p.view(), {1, 2, 3});
}

TEST_P(AdamWTest, ANormThatIsNotFiniteChangesNothing) {
  const AdamWSegment all{.begin = 0, .end = 3, .weight_decay = 0.1};
  for (double bad :
       {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    Block b = random_block(3);
    const Block before = b.clone();
    EXPECT_FALSE(step(ctx(), b, tensor({3}, {1, bad, 2}), {.max_norm = 1}, {&all, 1}));
    expect_same(b, before);
  }
}

// What the state decides takes the place of the step and of the gradient's scale; an update that
// was skipped does not count.
TEST_P(AdamWTest, AStateCountsStepsAndDecidesAboutThem) {
  const AdamWSegment all{.begin = 0, .end = 70};
  const Tensor gradient = random({70}), bad = tensor({70}, std::vector<double>(70, NAN));
  std::vector<double> large = values_of(gradient.view());
  for (double& g : large) g *= 4;
  const Tensor scaled = tensor({70}, large);
  std::vector<double> losses(3000, 1.0);
  const Tensor fine = tensor({3000}, losses), none = zeros({0});
  losses[2999] = INFINITY;
  const Tensor wrong = tensor({3000}, losses);
  Block want = random_block(70), got = want.clone();
  const UpdateState start{.steps_done = 6, .scale = 8};
  constexpr int64_t kBytes = sizeof(UpdateState);
  Tensor state({kBytes}, DType::u8, test_device());
  copy(view_of(reinterpret_cast<const uint8_t*>(&start), Shape{kBytes}), state.view());
  Tensor norm({1}, DType::f64, test_device());
  const auto attempt = [&](const Tensor& g, const Tensor& loss) {
    gradient_norm(ctx(), g.view(), norm.view());
    const AdamWOptions options{.max_norm = 1, .scale_rule = {.dynamic = true}};
    adamw(ctx(), got.p.view(), g.view(), got.m.view(), got.v.view(), std::as_const(norm).view(),
          loss.view(), options, {&all, 1}, state.view());
    UpdateState now;
    copy(std::as_const(state).view(), view_of(reinterpret_cast<uint8_t*>(&now), Shape{kBytes}));
    return now;
  };
  const auto resume = [&](UpdateState now) {
    now.stopped = 0;
    copy(view_of(reinterpret_cast<const uint8_t*>(&now), Shape{kBytes}), state.view());
  };
  EXPECT_EQ(attempt(scaled, wrong).outcome, StepOutcome::not_finite);
  EXPECT_EQ(attempt(scaled, fine).outcome, StepOutcome::held);
  resume(start);
  UpdateState now = attempt(bad, fine);
  EXPECT_EQ(now.outcome, StepOutcome::repeat);
  EXPECT_EQ(now.scale, 4);
  expect_same(got, want);
  resume(now);
  now = attempt(scaled, fine);
  EXPECT_EQ(now.outcome, StepOutcome::updated);
  EXPECT_EQ(now.steps_done, 7);
  EXPECT_NEAR(now.norm, std::sqrt(dot(gradient.view(), gradient.view())), 1e-12 * now.norm);
  now = attempt(scaled, none);
  EXPECT_EQ(now.steps_done, 8);
  EXPECT_EQ(now.good_steps, 2);
  for (int64_t number : {7, 8})
    ASSERT_TRUE(step(ctx(), want, gradient, {.max_norm = 1, .step = number}, {&all, 1}));
  expect_same(got, want);
}

TEST_P(AdamWTest, SegmentsHaveTheirOwnDecayAndRate) {
  Block b = fresh({1, 1, 1, 1, 1});
  const std::array<AdamWSegment, 3> segments = {{
      {.begin = 0, .end = 1, .weight_decay = 1},
      {.begin = 2, .end = 2, .weight_decay = 9},
      {.begin = 2, .end = 4, .weight_decay = 1, .rate_factor = 2},
  }};
  const AdamWOptions options{.learning_rate = 0.1, .eps = 0};
  ASSERT_TRUE(step(ctx(), b, tensor({5}, {1, 1, -1, 1, 1}), options, segments));
  expect_close(b.p.view(), {0.8, 1, 1, 0.6, 1}, kRoundings);
  expect_close(b.m.view(), {0.1, 0, -0.1, 0.1, 0}, kRoundings);
}

TEST_P(AdamWTest, CuttingIntoSegmentsChangesNoBit) {
  for (int64_t n : {0, 1, 2, 3, 31, 33, 257, 100001}) {
    const Block start = random_block(n);
    const Tensor gradient = random({n});
    const AdamWSegment all{.begin = 0, .end = n, .weight_decay = 0.01};
    std::vector<AdamWSegment> cut;
    for (int64_t begin = 0, size = 1; begin < n; begin += size, size = size * 3 + 1)
      cut.push_back({.begin = begin, .end = std::min(n, begin + size), .weight_decay = 0.01});
    Block whole = start.clone(), parts = start.clone();
    const AdamWOptions options{.max_norm = 1, .step = 7};
    ASSERT_TRUE(step(ctx(), whole, gradient, options, {&all, 1}));
    ASSERT_TRUE(step(ctx(), parts, gradient, options, cut));
    expect_same(parts, whole);
  }
}

TEST_P(AdamWTest, HundredsOfSegmentsChangeNoBit) {
  const int64_t n = 1403;
  Block whole = random_block(n), parts = whole.clone();
  const Tensor gradient = random({n});
  const AdamWSegment all{.begin = 0, .end = n, .weight_decay = 0.01};
  std::vector<AdamWSegment> cut;
  for (int64_t begin = 0; begin < n; begin += 7)
    cut.push_back({.begin = begin, .end = std::min(n, begin + 7), .weight_decay = 0.01});
  ASSERT_TRUE(step(ctx(), whole, gradient, {.step = 7}, {&all, 1}));
  ASSERT_TRUE(step(ctx(), parts, gradient, {.step = 7}, cut));
  expect_same(parts, whole);
}

TEST_P(AdamWTest, AScaledGradientGivesTheSameUpdate) {
  const int64_t n = 1000;
  for (const double max_norm : {0.0, 0.5}) {
    Block plain = random_block(n), scaled = plain.clone();
    const Tensor gradient = random({n});
    std::vector<double> larger = values_of(gradient.view());
    for (double& g : larger) g *= 1024;
    const AdamWSegment all{.begin = 0, .end = n, .weight_decay = 0.01};
    ASSERT_TRUE(step(ctx(), plain, gradient, {.max_norm = max_norm, .step = 3}, {&all, 1}));
    ASSERT_TRUE(step(ctx(), scaled, tensor({n}, larger),
                     {.max_norm = max_norm, .gradient_scale = 1024, .step = 3}, {&all, 1}));
    expect_same(scaled, plain);  // a power of two rounds nothing
  }
}

TEST_P(AdamWTest, AgreesWithTheFormulaAtAwkwardSizes) {
  for (int64_t n : {1, 2, 3, 31, 33, 257, 40000}) {
    Block b = random_block(n);
    const Tensor gradient = random({n});
    const std::vector<double> g = values_of(gradient.view());
    std::vector<double> p = values_of(b.p.view()), m = values_of(b.m.view()),
                        v = values_of(b.v.view());
    const double clip = std::min(1.0, 0.5 / std::sqrt(dot(gradient.view(), gradient.view())));
    for (size_t i = 0; i < p.size(); ++i) {
      m[i] = 0.9 * m[i] + 0.1 * clip * g[i];
      v[i] = 0.999 * v[i] + 0.001 * clip * g[i] * clip * g[i];
      p[i] *= 1 - 0.002 * 0.1;
      p[i] -= 0.002 * (m[i] / (1 - std::pow(0.9, 11))) /
              (std::sqrt(v[i] / (1 - std::pow(0.999, 11))) + 1e-8);
    }
    const AdamWSegment all{.begin = 0, .end = n, .weight_decay = 0.1, .rate_factor = 2};
    ASSERT_TRUE(
        step(ctx(), b, gradient, {.learning_rate = 0.001, .max_norm = 0.5, .step = 11}, {&all, 1}));
    expect_close(b.p.view(), p);
    expect_close(b.m.view(), m);
    expect_close(b.v.view(), v);
  }
}

TEST_P(AdamWTest, UnalignedBlocksGetTheSameBits) {
  constexpr int64_t kSize = 5000;
  Tensor p = random({kSize + 1}), g = random({kSize + 1}), m = zeros({kSize + 1}),
         v = zeros({kSize + 1});
  Block want = fresh(values_of(behind_first(p, {kSize})));
  const Tensor gradient = tensor({kSize}, values_of(behind_first(g, {kSize})));
  const AdamWSegment all{.begin = 0, .end = kSize, .weight_decay = 0.1};
  const AdamWOptions options{.max_norm = 1};
  ASSERT_TRUE(step(ctx(), want, gradient, options, {&all, 1}));
  Tensor norm({1}, DType::f64, test_device());
  gradient_norm(ctx(), behind_first(g, {kSize}), norm.view());
  ASSERT_TRUE(adamw(ctx(), behind_first(p, {kSize}), behind_first(g, {kSize}),
                    behind_first(m, {kSize}), behind_first(v, {kSize}), std::as_const(norm).view(),
                    options, {&all, 1}));
  expect_same_bits(behind_first(p, {kSize}), want.p.view());
  expect_same_bits(behind_first(m, {kSize}), want.m.view());
  expect_same_bits(behind_first(v, {kSize}), want.v.view());
}

TEST_P(AdamWTest, SameBitsForAnyThreadCount) {
  const int64_t n = 200003;
  const Block start = random_block(n);
  const Tensor gradient = random({n});
  const std::array<AdamWSegment, 2> segments = {{
      {.begin = 5, .end = 70001, .weight_decay = 0.01},
      {.begin = 70001, .end = n, .rate_factor = 0.5},
  }};
  Block want = start.clone();
  ASSERT_TRUE(step(ctx(), want, gradient, {.max_norm = 1}, segments));
  for (int threads : {1, 3, 8}) {
    Context other(test_device(), {.threads = threads, .reference = GetParam().reference});
    Block got = start.clone();
    ASSERT_TRUE(step(other, got, gradient, {.max_norm = 1}, segments));
    expect_same(got, want);
  }
}

TEST_P(AdamWTest, ErrorsNameWhatWasWanted) {
  Block b = fresh({1, 2, 3});
  const Tensor gradient = zeros({3}), two = zeros({2});
  const AdamWSegment all{.begin = 0, .end = 3};
  const auto call = [&](const Tensor& g, AdamWOptions options, std::vector<AdamWSegment> segments) {
    return [this, &b, &g, options, segments] { step(ctx(), b, g, options, segments); };
  };
  expect_error("adamw: gradient must be [3], got [2]", call(two, {}, {all}));
  expect_error("adamw: beta1 must be in [0, 1), got 1", call(gradient, {.beta1 = 1}, {all}));
  expect_error("adamw: beta2 must be in [0, 1), got nan",
               call(gradient, {.beta2 = std::nan("")}, {all}));
  expect_error("adamw: eps must be 0 or more, got -1", call(gradient, {.eps = -1}, {all}));
  expect_error("adamw: the learning rate must be 0 or more, got -0.1",
               call(gradient, {.learning_rate = -0.1}, {all}));
  expect_error("adamw: max_norm must be 0 (no clipping) or more, got -2",
               call(gradient, {.max_norm = -2}, {all}));
  expect_error("adamw: steps count from 1, got 0", call(gradient, {.step = 0}, {all}));
  expect_error("inside [0, 3), got 2..4 after 0", call(gradient, {}, {{.begin = 2, .end = 4}}));
  expect_error("in order, disjoint and inside [0, 3), got 1..3 after 2",
               call(gradient, {}, {{.begin = 0, .end = 2}, {.begin = 1, .end = 3}}));
  const Block untouched = fresh({1, 2, 3});
  expect_same(b, untouched);
}

}  // namespace
}  // namespace scgraft
