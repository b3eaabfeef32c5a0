// SPDX-License-Identifier: Apache-2.0
#include "kernels/activation.h"

#include <cmath>
#include <limits>

#include "tests/kernels/packed_cells.h"

namespace scgraft {
namespace {

constexpr Activation kAll[] = {Activation::relu,    Activation::leaky_relu,
                               Activation::sigmoid, Activation::tanh,
                               Activation::gelu,    Activation::steep_leaky_relu};

// What activation_backward() takes f' from.
const Tensor& kept(Activation kind, const Tensor& x, const Tensor& y) {
  return kind == Activation::gelu ? x : y;
}

class ActivationTest : public OpTest {
 public:
  // 1 + erf is rounded to its type beside 1, and then multiplied by x or dy: below zero, where
  // little of it is left, the error is that of those.
  void expect_gelu(const Tensor& x, const Tensor* dy, const Tensor& got, const Tensor& want) {
    const std::vector<double> vx = values_of(x.view()), g = values_of(got.view()),
                              w = values_of(want.view());
    const std::vector<double> factor = dy == nullptr ? vx : values_of(dy->view());
    const Tolerance storage = tolerance(dtype(), 1);
    const Tolerance sum = tolerance(dtype() == DType::f64 ? DType::f64 : DType::f32, 1);
    for (size_t i = 0; i < g.size(); ++i)
      ASSERT_NEAR(g[i], w[i],
                  storage.rtol * std::abs(w[i]) + sum.rtol * std::abs(factor[i]) +
                      (dtype() == DType::f16 ? 3.0e-8 : 0))
          << "at " << vx[i];
  }
};
INSTANTIATE_OP_TEST(ActivationTest);

TEST_P(ActivationTest, ReluCutsBelowZero) {
  const Tensor x = tensor({4}, {-2, 0, 0.5, 3});
  Tensor y = poisoned({4});
  activation(ctx(), Activation::relu, x.view(), y.view());
  expect_close(y.view(), {0, 0, 0.5, 3});
  const Tensor dy = tensor({4}, {1, 2, 3, 4});
  Tensor dx = poisoned({4});
  activation_backward(ctx(), Activation::relu, y.view(), dy.view(), dx.view());
  expect_close(dx.view(), {0, 0, 3, 4});
}

TEST_P(ActivationTest, LeakyReluKeepsAHundredth) {
  const Tensor x = tensor({4}, {-2, 0, 0.5, 3});
  Tensor y = poisoned({4});
  activation(ctx(), Activation::leaky_relu, x.view(), y.view());
  expect_close(y.view(), {-0.02, 0, 0.5, 3});
  const Tensor dy = tensor({4}, {1, 2, 3, 4});
  Tensor dx = poisoned({4});
  activation_backward(ctx(), Activation::leaky_relu, y.view(), dy.view(), dx.view());
  expect_close(dx.view(), {0.01, 2, 3, 4});
}

TEST_P(ActivationTest, SteepLeakyReluKeepsATenth) {
  const Tensor x = tensor({4}, {-2, 0, 0.5, 3});
  Tensor y = poisoned({4});
  activation(ctx(), Activation::steep_leaky_relu, x.view(), y.view());
  expect_close(y.view(), {-0.2, 0, 0.5, 3});
  const Tensor dy = tensor({4}, {1, 2, 3, 4});
  Tensor dx = poisoned({4});
  activation_backward(ctx(), Activation::steep_leaky_relu, y.view(), dy.view(), dx.view());
  expect_close(dx.view(), {0.1, 2, 3, 4});
}

TEST_P(ActivationTest, SigmoidIsSymmetricAndNeverOverflows) {
  const Tensor x = tensor({7}, {0, std::log(3.0), -std::log(3.0), 40, -40, 1e4, -1e4});
  Tensor y = poisoned({7});
  activation(ctx(), Activation::sigmoid, x.view(), y.view());
  expect_close(y.view(), {0.5, 0.75, 0.25, 1, 4.248354255291589e-18, 1, 0});
  EXPECT_NEAR(values_of(y.view())[4] / 4.248354255291589e-18, 1, 1e-6);
  const Tensor dy = tensor({7}, {1, 1, 2, 1, 1, 1, 1});
  Tensor dx = poisoned({7});
  activation_backward(ctx(), Activation::sigmoid, y.view(), dy.view(), dx.view());
  expect_close(dx.view(), {0.25, 0.1875, 0.375, 0, 4.248354255291589e-18, 0, 0});
}

// tanh(ln 3) = 4/5.
TEST_P(ActivationTest, TanhIsOddAndNeverOverflows) {
  const Tensor x = tensor({7}, {0, std::log(3.0), -std::log(3.0), 1e-4, -1e-4, 1e4, -1e4});
  Tensor y = poisoned({7});
  activation(ctx(), Activation::tanh, x.view(), y.view());
  expect_close(y.view(), {0, 0.8, -0.8, 9.9999999666666667e-5, -9.9999999666666667e-5, 1, -1});
  const Tensor dy = tensor({7}, {1, 1, 2, 1, 1, 1, 1});
  Tensor dx = poisoned({7});
  activation_backward(ctx(), Activation::tanh, y.view(), dy.view(), dx.view());
  expect_close(dx.view(), {1, 0.36, 0.72, 0.99999999, 0.99999999, 0, 0});
}

TEST_P(ActivationTest, UnalignedTensorsGetTheSameBits) {
  for (DType type : storage_types())
    for (Activation kind : kAll) {
      SCOPED_TRACE(type);
      store(type);
      constexpr int64_t kSize = 3000;
      Tensor x = random({kSize + 1}), dy = random({kSize + 1});
      Tensor y = poisoned({kSize + 1}), dx = poisoned({kSize + 1});
      Tensor y_want = poisoned({kSize}), dx_want = poisoned({kSize});
      const Tensor x_aligned = tensor_of({kSize}, type, values_of(behind_first(x, {kSize})));
      const Tensor dy_aligned = tensor_of({kSize}, type, values_of(behind_first(dy, {kSize})));
      activation(ctx(), kind, x_aligned.view(), y_want.view());
      activation(ctx(), kind, behind_first(x, {kSize}), behind_first(y, {kSize}));
      expect_same_bits(behind_first(y, {kSize}), y_want.view());
      activation_backward(ctx(), kind, y_want.view(), dy_aligned.view(), dx_want.view());
      activation_backward(ctx(), kind, behind_first(y, {kSize}), behind_first(dy, {kSize}),
                          behind_first(dx, {kSize}));
      expect_same_bits(behind_first(dx, {kSize}), dx_want.view());
    }
}

// Values of scipy.stats.norm: x cdf(x), and its derivative cdf(x) + x pdf(x).
TEST_P(ActivationTest, GeluIsXTimesTheShareBelowX) {
  const Tensor x = tensor({8}, {0, 1, -1, 0.25, -3, 6, 40, -40});
  Tensor y = poisoned({8});
  activation(ctx(), Activation::gelu, x.view(), y.view());
  expect_close(y.view(), {0, 0.8413447460685429, -0.15865525393145707, 0.14967658142073093,
                          -0.00404969409489031, 5.999999994080474, 40, 0});
  const Tensor dy = tensor({8}, {1, 1, 1, 2, 1, 1, 1, 1});
  Tensor dx = poisoned({8});
  activation_backward(ctx(), Activation::gelu, x.view(), dy.view(), dx.view());
  expect_close(dx.view(), {0.5, 1.0833154705876864, -0.08331547058768629, 1.390746709767272,
                           -0.01194564720418392, 1.0000000354687093, 1, 0});
}

TEST_P(ActivationTest, NanStaysVisible) {
  const Tensor x = poisoned({9});
  for (Activation kind : kAll) {
    Tensor y = zeros({9});
    activation(ctx(), kind, x.view(), y.view());
    for (double v : values_of(y.view())) EXPECT_TRUE(std::isnan(v));
  }
  Tensor dx = zeros({9});
  activation_backward(ctx(), Activation::gelu, x.view(), x.view(), dx.view());
  for (double v : values_of(dx.view())) EXPECT_TRUE(std::isnan(v));
}

TEST_P(ActivationTest, AwkwardSizesAgreeWithTheF64Definition) {
  for (DType type : storage_types()) {
    SCOPED_TRACE(type);
    store(type);
    Context definition = reference_context();
    for (Activation kind : kAll)
      for (int64_t n : {0, 1, 2, 3, 31, 33, 257, 16384, 16385, 33000}) {
        const Tensor x = random_values({n}, dtype(), 1, 3);
        const Tensor dy = random_values({n}, dtype(), 2);
        Tensor y = poisoned({n}), dx = poisoned({n});
        activation(ctx(), kind, x.view(), y.view());
        activation_backward(ctx(), kind, kept(kind, x, y).view(), dy.view(), dx.view());
        Tensor y64(Shape{n}, DType::f64), dx64(Shape{n}, DType::f64);
        activation(definition, kind, in_f64(x).view(), y64.view());
        activation_backward(definition, kind, in_f64(kept(kind, x, y)).view(), in_f64(dy).view(),
                            dx64.view());
        if (kind == Activation::gelu) {
          expect_gelu(x, nullptr, y, y64);
          expect_gelu(x, &dy, dx, dx64);
          continue;
        }
        expect_close(y.view(), values_of(y64.view()));
        expect_close(dx.view(), values_of(dx64.view()));
      }
  }
}

TEST(Activation, BackwardMatchesFiniteDifferences) {
  Context ctx = reference_context();
  for (Activation kind : kAll) {
    // Away from the kink at 0, where no derivative exists.
    Tensor x = random_values({40}, DType::f64, 3);
    for (int64_t i = 0; i < 40; ++i)
      if (std::abs(x.as<double>()[i]) < 1e-3) x.as<double>()[i] = 0.5;
    const Tensor weight = random_values({40}, DType::f64, 4);
    Tensor y(Shape{40}, DType::f64), dx(Shape{40}, DType::f64);
    const auto loss = [&] {
      activation(ctx, kind, x.view(), y.view());
      return dot(weight.view(), y.view());
    };
    loss();
    activation_backward(ctx, kind, kept(kind, x, y).view(), weight.view(), dx.view());
    expect_gradient(x, loss, dx.view());
  }
}

TEST_P(ActivationTest, WorksInPlaceAndOnAnyThreads) {
  for (Activation kind : kAll) {
    const Tensor x = random({67, 512});
    const Tensor dy = random({67, 512});
    Tensor y = poisoned({67, 512}), dx = poisoned({67, 512});
    activation(ctx(), kind, x.view(), y.view());
    activation_backward(ctx(), kind, kept(kind, x, y).view(), dy.view(), dx.view());
    for (int threads : {1, 3}) {
      Context other(test_device(), {.threads = threads, .reference = ctx().reference()});
      Tensor in_place = x.clone();
      activation(other, kind, in_place.view(), in_place.view());
      expect_same_bits(in_place.view(), y.view());
      Tensor grad = dy.clone();
      activation_backward(other, kind, kept(kind, x, y).view(), grad.view(), grad.view());
      expect_same_bits(grad.view(), dx.view());
    }
  }
}

TEST_P(ActivationTest, ErrorsNameShapesAndTypes) {
  const Tensor x = zeros({2, 3});
  Tensor y = zeros({3, 2});
  expect_error("activation: x and y must have one shape, got [2, 3] and [3, 2]",
               [&] { activation(ctx(), Activation::relu, x.view(), y.view()); });
  expect_error("activation_backward: y and dx must have one shape, got [2, 3] and [3, 2]",
               [&] { activation_backward(ctx(), Activation::relu, x.view(), x.view(), y.view()); });
  Tensor other(Shape{2, 3}, DType::bf16, test_device());
  expect_error("x and y must have one type",
               [&] { activation(ctx(), Activation::relu, x.view(), other.view()); });
}

}  // namespace
}  // namespace scgraft
