// SPDX-License-Identifier: Apache-2.0
#include "kernels/rotation.h"

#include <cmath>

#include "tests/kernels/packed_cells.h"

namespace scgraft {
namespace {

struct Size {
  int64_t blocks, n;
};
const std::vector<Size> kSizes = {{1, 1}, {3, 2}, {2, 3}, {5, 7}, {2, 31}, {2, 33}, {1, 64}};

class RotationTest : public OpTest {
 protected:
  Tensor skew(Size s, double scale = 0.3) { return random({s.blocks, s.n * (s.n - 1) / 2}, scale); }
  Tensor rotation(const Tensor& from, Size s) {
    Tensor q = poisoned({s.blocks, s.n, s.n});
    cayley(ctx(), from.view(), q.view());
    return q;
  }
  Tensor rotated(const Tensor& w, const Tensor& q) {
    Tensor y = poisoned(w.shape());
    rotate_columns(ctx(), w.view(), q.view(), y.view());
    return y;
  }
};
INSTANTIATE_OP_TEST(RotationTest);

// S of one block from its triangle, row-major.
std::vector<double> full(const std::vector<double>& triangle, int64_t n) {
  std::vector<double> s(static_cast<size_t>(n * n), 0.0);
  size_t next = 0;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = i + 1; j < n; ++j, ++next) {
      s[static_cast<size_t>(i * n + j)] = triangle[next];
      s[static_cast<size_t>(j * n + i)] = -triangle[next];
    }
  return s;
}

TEST_P(RotationTest, HandComputed) {
  // The angle of a block of two is -2 atan(s): here cos = 0.6 and sin = -0.8.
  const Tensor q = rotation(tensor({2, 1}, {0.5, 0}), {2, 2});
  expect_close(q.view(), {0.6, -0.8, 0.8, 0.6, 1, 0, 0, 1}, 4);
  const Tensor w = tensor({2, 4}, {1, 0, 5, 6, 0, 10, 7, 8});
  expect_close(rotated(w, q).view(), {0.6, 0.8, 5, 6, -8, 6, 7, 8}, 4);
}

// Q (I + S) = I - S, which is what defines it.
TEST_P(RotationTest, ItIsTheCayleyTransform) {
  for (const Size s : kSizes) {
    SCOPED_TRACE(cat(s.blocks, " x ", s.n));
    const Tensor free = skew(s);
    const std::vector<double> q = values_of(rotation(free, s).view()),
                              triangles = values_of(free.view());
    const auto each = static_cast<size_t>(s.n * (s.n - 1) / 2), n = static_cast<size_t>(s.n);
    std::vector<double> left, right;
    for (size_t b = 0; b < static_cast<size_t>(s.blocks); ++b) {
      const std::vector<double> sk =
          full({triangles.begin() + static_cast<int64_t>(b * each),
                triangles.begin() + static_cast<int64_t>((b + 1) * each)},
               s.n);
      for (size_t i = 0; i < n; ++i)
        for (size_t j = 0; j < n; ++j) {
          double sum = q[(b * n + i) * n + j];
          for (size_t k = 0; k < n; ++k) sum += q[(b * n + i) * n + k] * sk[k * n + j];
          left.push_back(sum);
          right.push_back((i == j) - sk[i * n + j]);
        }
    }
    expect_close(tensor({s.blocks, s.n, s.n}, left).view(), right, s.n * s.n);
  }
}

TEST_P(RotationTest, ItIsOrthogonal) {
  for (const double scale : {1e-3, 0.3, 2.0}) {
    const Size s{3, 33};
    const std::vector<double> q = values_of(rotation(skew(s, scale), s).view());
    std::vector<double> gram(3 * 33 * 33, 0.0), identity(gram);
    for (size_t b = 0; b < 3; ++b)
      for (size_t i = 0; i < 33; ++i) {
        identity[(b * 33 + i) * 33 + i] = 1;
        for (size_t j = 0; j < 33; ++j)
          for (size_t k = 0; k < 33; ++k)
            gram[(b * 33 + i) * 33 + j] += q[(b * 33 + k) * 33 + i] * q[(b * 33 + k) * 33 + j];
      }
    // |S| is about 2 scale sqrt(n); on CUDA the square of it multiplies roundings.
    expect_close(tensor({3, 33, 33}, gram).view(), identity,
                 static_cast<int64_t>(33 * (1 + 4 * scale * scale * 33)));
  }
}

TEST_P(RotationTest, TheLargestBlock) {
  const Size s{1, kRotationSize};
  Context definition = reference_context();
  const Tensor free = skew(s, 0.02);
  Tensor want({1, s.n, s.n}, DType::f64);
  cayley(definition, in_f64(free).view(), want.view());
  expect_close(rotation(free, s).view(), values_of(want.view()), s.n);
}

TEST_P(RotationTest, ZerosLeaveEveryBitOfTheWeight) {
  for (const Size s : kSizes) {
    const Tensor q = rotation(zeros({s.blocks, s.n * (s.n - 1) / 2}), s);
    const std::vector<double> values = values_of(q.view());
    for (size_t e = 0; e < values.size(); ++e) {
      const auto n = static_cast<size_t>(s.n);
      EXPECT_EQ(values[e], e / n % n == e % n ? 1 : 0) << e;
    }
    const Tensor w = random({33, s.blocks * s.n});
    expect_same_bits(rotated(w, q).view(), w.view());
  }
}

TEST_P(RotationTest, ColumnsAgreeWithTheF64Definition) {
  Context definition = reference_context();
  for (const Size s : kSizes)
    for (const int64_t out : kAwkwardRows) {
      SCOPED_TRACE(cat(out, " x ", s.blocks, " x ", s.n));
      const Tensor w = random({out, s.blocks * s.n}), q = random({s.blocks, s.n, s.n}),
                   dy = random(w.shape());
      Tensor want(w.shape(), DType::f64), dq = poisoned(q.shape()), dq_want(q.shape(), DType::f64);
      rotate_columns(definition, in_f64(w).view(), in_f64(q).view(), want.view());
      expect_close(rotated(w, q).view(), values_of(want.view()), s.n);
      rotate_columns_backward(ctx(), w.view(), dy.view(), dq.view());
      rotate_columns_backward(definition, in_f64(w).view(), in_f64(dy).view(), dq_want.view());
      expect_close(dq.view(), values_of(dq_want.view()), out);
    }
}

TEST_P(RotationTest, GradientsMatchFiniteDifferences) {
  if (dtype() != DType::f64) GTEST_SKIP() << "finite differences are taken in f64";
  for (const Size s : {Size{1, 2}, Size{2, 3}, Size{3, 5}, Size{1, 9}}) {
    SCOPED_TRACE(cat(s.blocks, " x ", s.n));
    Tensor free = skew(s);
    const Tensor w = random({6, s.blocks * s.n}), weight = random(w.shape());
    Tensor q = rotation(free, s), dq = poisoned(q.shape()), dskew = zeros(free.shape());
    rotate_columns_backward(ctx(), w.view(), weight.view(), dq.view());
    expect_gradient(
        q, [&] { return dot(rotated(w, q).view(), weight.view()); }, dq.view());
    cayley_backward(ctx(), q.view(), dq.view(), dskew.view());
    expect_gradient(
        free, [&] { return dot(rotated(w, rotation(free, s)).view(), weight.view()); },
        dskew.view());
  }
}

TEST_P(RotationTest, BackwardAgreesWithTheF64DefinitionAndAdds) {
  Context definition = reference_context();
  for (const Size s : kSizes) {
    SCOPED_TRACE(cat(s.blocks, " x ", s.n));
    const Tensor q = rotation(skew(s), s), dq = random(q.shape());
    const Shape shape{s.blocks, s.n * (s.n - 1) / 2};
    Tensor dskew = zeros(shape), want(shape, DType::f64);
    cayley_backward(ctx(), q.view(), dq.view(), dskew.view());
    cayley_backward(definition, in_f64(q).view(), in_f64(dq).view(), want.view());
    expect_close(dskew.view(), values_of(want.view()), s.n * s.n);
    Tensor more = tensor(shape, std::vector<double>(static_cast<size_t>(shape.numel()), 8.0));
    cayley_backward(ctx(), q.view(), dq.view(), more.view());
    std::vector<double> sums = values_of(dskew.view());
    for (double& x : sums) x += 8;
    expect_close(more.view(), sums);
  }
}

TEST_P(RotationTest, BlocksOutsideTheRadiusComeInside) {
  // Norms sqrt(2) times 5 and 0.5; then a block of which the sum has an order.
  Tensor free = tensor({2, 3}, {3, 0, -4, 0.3, 0.4, 0});
  const double radius = 2 * std::sqrt(2.0);
  bound_rotation(ctx(), radius, free.view());
  const double inside = 2.0 / 5 * kInsideRadius;
  expect_close(free.view(), {3 * inside, 0, -4 * inside, 0.3, 0.4, 0}, 4);

  Tensor wide = random({2, 2016}, 0.3);
  bound_rotation(ctx(), 1.5, wide.view());
  const std::vector<double> values = values_of(wide.view());
  for (size_t b = 0; b < 2; ++b) {
    double square = 0;
    for (size_t i = 0; i < 2016; ++i) square += values[b * 2016 + i] * values[b * 2016 + i];
    EXPECT_LE(std::sqrt(2 * square), 1.5);
    EXPECT_GT(std::sqrt(2 * square), 1.5 * (1 - 3e-5));
  }
  const Tensor once = wide.clone();
  bound_rotation(ctx(), 1.5, wide.view());
  expect_same_bits(wide.view(), once.view());
  bound_rotation(ctx(), 0, wide.view());
  expect_close(wide.view(), std::vector<double>(2 * 2016, 0.0));
}

TEST_P(RotationTest, ABlockDoesNotDependOnItsNeighbours) {
  const Size both{2, 33};
  const Tensor free = skew(both), w = random({40, 66}), dq = random({2, 33, 33});
  const Tensor q = rotation(free, both);
  Tensor dskew = zeros(free.shape());
  cayley_backward(ctx(), q.view(), dq.view(), dskew.view());
  for (int64_t b = 0; b < 2; ++b) {
    Tensor alone = poisoned({1, 33, 33}), dalone = zeros({1, 528});
    cayley(ctx(), free.view().rows(b, b + 1), alone.view());
    expect_same_bits(alone.view(), q.view().rows(b, b + 1));
    cayley_backward(ctx(), alone.view(), dq.view().rows(b, b + 1), dalone.view());
    expect_same_bits(dalone.view(), dskew.view().rows(b, b + 1));
  }
  // Nor does a row of the weight.
  const Tensor y = rotated(w, q);
  Tensor last = poisoned({1, 66});
  rotate_columns(ctx(), w.view().rows(39, 40), q.view(), last.view());
  expect_same_bits(last.view(), y.view().rows(39, 40));
}

TEST_P(RotationTest, ThreadsDoNotChangeBits) {
  if (test_device().is_cuda()) GTEST_SKIP() << "threads are of the CPU";
  const Size s{5, 33};
  const Tensor free = skew(s), w = random({70, 165});
  Context one(Device::cpu(), {.threads = 1}), three(Device::cpu(), {.threads = 3});
  Tensor dq_first, y_first;
  for (Context* c : {&one, &three}) {
    Tensor q = poisoned({5, 33, 33}), y = poisoned(w.shape()), dq = poisoned(q.shape());
    cayley(*c, free.view(), q.view());
    rotate_columns(*c, w.view(), q.view(), y.view());
    rotate_columns_backward(*c, w.view(), y.view(), dq.view());
    if (c == &three) {
      expect_same_bits(y.view(), y_first.view());
      expect_same_bits(dq.view(), dq_first.view());
    }
    y_first = std::move(y);
    dq_first = std::move(dq);
  }
}

TEST_P(RotationTest, NothingInNothingOut) {
  const Tensor none = zeros({0, 3}), w = zeros({4, 0}), rows = zeros({0, 6});
  Tensor q = zeros({0, 3, 3}), dskew = zeros({0, 3}), y = zeros({4, 0}), y_rows = zeros({0, 6});
  cayley(ctx(), none.view(), q.view());
  cayley_backward(ctx(), q.view(), q.view(), dskew.view());
  bound_rotation(ctx(), 1, dskew.view());
  rotate_columns(ctx(), w.view(), q.view(), y.view());
  rotate_columns_backward(ctx(), w.view(), y.view(), q.view());
  Tensor two = poisoned({2, 3, 3});
  rotate_columns_backward(ctx(), rows.view(), y_rows.view(), two.view());
  expect_close(two.view(), std::vector<double>(18, 0.0));
}

TEST_P(RotationTest, ErrorsNameWhatWasWanted) {
  Tensor skew = zeros({2, 3}), q = zeros({2, 3, 3}), long_q = zeros({2, 3, 4}), w = zeros({5, 7}),
         good = zeros({5, 6});
  expect_error("cayley: q must be [blocks, n, n] with n from 1 to 256, got [2, 3, 4]",
               [&] { cayley(ctx(), skew.view(), long_q.view()); });
  Tensor large = zeros({1, 257, 257});
  expect_error("256", [&] { cayley(ctx(), skew.view(), large.view()); });
  Tensor four = zeros({2, 4});
  expect_error("cayley: skew must be [2, 3], got [2, 4]",
               [&] { cayley(ctx(), four.view(), q.view()); });
  expect_error("cayley_backward: dskew must be [2, 3], got [2, 4]",
               [&] { cayley_backward(ctx(), q.view(), q.view(), four.view()); });
  expect_error("rotate_columns: w must be [out, 6], got [5, 7]",
               [&] { rotate_columns(ctx(), w.view(), q.view(), w.view()); });
  expect_error("rotate_columns: y must be [5, 6], got [5, 7]",
               [&] { rotate_columns(ctx(), good.view(), q.view(), w.view()); });
  expect_error("rotate_columns_backward: dy must be [5, 6], got [5, 7]",
               [&] { rotate_columns_backward(ctx(), good.view(), w.view(), q.view()); });
  expect_error("bound_rotation: the radius must not be negative, got -1",
               [&] { bound_rotation(ctx(), -1, skew.view()); });
}

}  // namespace
}  // namespace scgraft
