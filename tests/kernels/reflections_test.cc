// SPDX-License-Identifier: Apache-2.0
#include "kernels/reflections.h"

#include <cmath>

#include "tests/kernels/packed_cells.h"

namespace scgraft {
namespace {

struct Factors {
  Tensor a, p;
};

class ReflectionsTest : public OpTest {
 protected:
  Factors factors(const Tensor& u) {
    const Shape rows{u.dim(1), u.dim(0)};
    Factors f{poisoned(rows), poisoned(rows)};
    reflections(ctx(), u.view(), f.a.view(), f.p.view());
    return f;
  }
};
INSTANTIATE_OP_TEST(ReflectionsTest);

// I - p^T a, row-major.
std::vector<double> matrix_of(const Factors& f) {
  const std::vector<double> a = values_of(f.a.view()), p = values_of(f.p.view());
  const auto rank = static_cast<size_t>(f.a.dim(0)), in = static_cast<size_t>(f.a.dim(1));
  std::vector<double> m(in * in, 0.0);
  for (size_t i = 0; i < in; ++i)
    for (size_t j = 0; j < in; ++j) {
      m[i * in + j] = i == j;
      for (size_t r = 0; r < rank; ++r) m[i * in + j] -= p[r * in + i] * a[r * in + j];
    }
  return m;
}

// H_1 ... H_r, one reflection after the other.
std::vector<double> chain_of(const Tensor& u) {
  const std::vector<double> columns = values_of(u.view());
  const auto in = static_cast<size_t>(u.dim(0)), rank = static_cast<size_t>(u.dim(1));
  std::vector<double> m(in * in, 0.0);
  for (size_t i = 0; i < in; ++i) m[i * in + i] = 1;
  for (size_t r = 0; r < rank; ++r) {
    double square = 0;
    for (size_t i = 0; i < in; ++i) square += columns[i * rank + r] * columns[i * rank + r];
    for (size_t row = 0; row < in; ++row) {
      double along = 0;
      for (size_t i = 0; i < in; ++i) along += m[row * in + i] * columns[i * rank + r];
      for (size_t i = 0; i < in && square > 0; ++i)
        m[row * in + i] -= 2 * along * columns[i * rank + r] / square;
    }
  }
  return m;
}

TEST_P(ReflectionsTest, HandComputed) {
  // Across the first axis, then across the diagonal: a quarter turn.
  const Tensor u = tensor({2, 2}, {3, 1, 0, 1});
  const Tensor m = tensor({2, 2}, matrix_of(factors(u)));
  expect_close(m.view(), {0, 1, -1, 0}, 4);
}

TEST_P(ReflectionsTest, TheTermIsTheChain) {
  for (const auto& [in, rank] : std::vector<std::pair<int64_t, int64_t>>{
           {2, 2}, {3, 4}, {7, 2}, {33, 8}, {64, 34}, {257, 6}, {3, 66}, {521, 8}}) {
    SCOPED_TRACE(cat(in, " x ", rank));
    const Tensor u = random({in, rank}, 3);
    const Tensor m = tensor({in, in}, matrix_of(factors(u)));
    // Every p_k is a sum over all that come before it, each with a product of `in` numbers.
    expect_close(m.view(), chain_of(u), in * rank * rank / 2);
  }
}

TEST_P(ReflectionsTest, ItIsOrthogonal) {
  const Tensor u = random({33, 8});
  const std::vector<double> m = matrix_of(factors(u));
  std::vector<double> gram(33 * 33, 0.0), identity(33 * 33, 0.0);
  for (size_t i = 0; i < 33; ++i) {
    identity[i * 33 + i] = 1;
    for (size_t j = 0; j < 33; ++j)
      for (size_t l = 0; l < 33; ++l) gram[i * 33 + j] += m[l * 33 + i] * m[l * 33 + j];
  }
  expect_close(tensor({33, 33}, gram).view(), identity, 33 * 8);
}

TEST_P(ReflectionsTest, EqualNeighboursLeaveNothing) {
  for (const int64_t in : {1, 8, 33, 512}) {
    std::vector<double> twice;
    const std::vector<double> half = values_of(random({in, 4}).view());
    for (const double x : half) twice.insert(twice.end(), {x, x});
    const Factors f = factors(tensor({in, 8}, twice));
    const std::vector<double> a = values_of(f.a.view()), p = values_of(f.p.view());
    for (size_t r = 0; r < 8; ++r)
      for (size_t i = 0; i < static_cast<size_t>(in); ++i)
        EXPECT_EQ((r % 2 == 0 ? a : p)[r * static_cast<size_t>(in) + i], 0) << r << " " << i;
    EXPECT_GT(dot(f.a.view(), f.a.view()), 0);  // what the gradient of p goes through
  }
}

TEST_P(ReflectionsTest, AColumnOfZerosReflectsNothing) {
  for (const std::vector<double>& u :
       {std::vector<double>{3, 0, 4, 0}, std::vector<double>{0, 3, 0, 4}}) {
    const Tensor m = tensor({2, 2}, matrix_of(factors(tensor({2, 2}, u))));
    expect_close(m.view(), {1 - 0.72, -0.96, -0.96, 1 - 1.28}, 4);
  }
}

TEST_P(ReflectionsTest, GradientMatchesFiniteDifferences) {
  if (dtype() != DType::f64) GTEST_SKIP() << "finite differences are taken in f64";
  for (const auto& [in, rank] :
       std::vector<std::pair<int64_t, int64_t>>{{2, 2}, {5, 4}, {9, 6}, {33, 8}}) {
    SCOPED_TRACE(cat(in, " x ", rank));
    const Tensor wa = random({rank, in}), wp = random({rank, in});
    // Apart, and as a fresh adapter has them.
    for (const bool fresh : {false, true}) {
      Tensor u = random({in, rank});
      for (int64_t i = 0; fresh && i < u.numel(); i += 2) u.as<double>()[i + 1] = u.as<double>()[i];
      Tensor du = zeros({in, rank});
      reflections_backward(ctx(), u.view(), wa.view(), wp.view(), du.view());
      expect_gradient(
          u,
          [&] {
            const Factors f = factors(u);
            return dot(f.a.view(), wa.view()) + dot(f.p.view(), wp.view());
          },
          du.view());
    }
  }
}

TEST_P(ReflectionsTest, BackwardAgreesWithTheF64Definition) {
  Context definition = reference_context();
  for (const auto& [in, rank] :
       std::vector<std::pair<int64_t, int64_t>>{{1, 2}, {7, 4}, {33, 8}, {200, 34}, {512, 8}}) {
    SCOPED_TRACE(cat(in, " x ", rank));
    const Tensor u = random({in, rank}), da = random({rank, in}), dp = random({rank, in});
    Tensor du = zeros({in, rank}), want({in, rank}, DType::f64);
    reflections_backward(ctx(), u.view(), da.view(), dp.view(), du.view());
    reflections_backward(definition, in_f64(u).view(), in_f64(da).view(), in_f64(dp).view(),
                         want.view());
    expect_close(du.view(), values_of(want.view()), in * rank);
  }
}

TEST_P(ReflectionsTest, GradientsAreAddedAndNothingElseIsTouched) {
  const Tensor u = random({9, 4}), da = random({4, 9}), dp = random({4, 9});
  const Tensor da_before = da.clone(), dp_before = dp.clone();
  Tensor once = zeros({9, 4}), more = tensor({9, 4}, std::vector<double>(36, 8.0));
  reflections_backward(ctx(), u.view(), da.view(), dp.view(), once.view());
  reflections_backward(ctx(), u.view(), da.view(), dp.view(), more.view());
  std::vector<double> want = values_of(once.view());
  for (double& x : want) x += 8;
  expect_close(more.view(), want);
  expect_same_bits(da.view(), da_before.view());
  expect_same_bits(dp.view(), dp_before.view());
}

TEST_P(ReflectionsTest, NothingInNothingOut) {
  for (const Shape& shape : {Shape{0, 2}, Shape{3, 0}}) {
    const Tensor u = zeros(shape);
    const Factors f = factors(u);
    Tensor du = zeros(shape);
    reflections_backward(ctx(), u.view(), f.a.view(), f.p.view(), du.view());
  }
}

TEST_P(ReflectionsTest, ErrorsNameWhatWasWanted) {
  const Tensor odd = zeros({5, 3}), u = zeros({5, 4});
  Tensor good = zeros({4, 5}), wrong = zeros({5, 4});
  expect_error("reflections: u must be [in, rank] with an even rank, got [5, 3]",
               [&] { reflections(ctx(), odd.view(), good.view(), good.view()); });
  expect_error("reflections: a must be [4, 5], got [5, 4]",
               [&] { reflections(ctx(), u.view(), wrong.view(), good.view()); });
  expect_error("reflections_backward: du must be [5, 4], got [4, 5]", [&] {
    reflections_backward(ctx(), u.view(), good.view(), good.view(), good.view());
  });
  Tensor bad({5, 4}, DType::i32, test_device()), out({4, 5}, DType::i32, test_device());
  expect_error("f32", [&] { reflections(ctx(), bad.view(), out.view(), out.view()); });
}

}  // namespace
}  // namespace scgraft
