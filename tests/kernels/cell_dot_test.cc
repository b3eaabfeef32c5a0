// SPDX-License-Identifier: Apache-2.0
#include "kernels/cell_dot.h"

#include <utility>

#include "tests/kernels/packed_cells.h"

namespace scgraft {
namespace {

class CellDotTest : public OpTest {};
INSTANTIATE_OP_TEST(CellDotTest);

// Cells of 0, 1, 2, 3, 31, 33, 0, 64, 65, 257 and 0 tokens.
const std::vector<int32_t> kAwkward = {0, 0, 1, 3, 6, 37, 70, 70, 134, 199, 456, 456};

TEST_P(CellDotTest, HandComputed) {
  const std::vector<int32_t> offsets = {0, 2, 2, 3};
  const Tensor x = tensor({3, 2}, {1, 2, 3, 4, 5, 6});
  const Tensor c = tensor({3, 2}, {10, 1, 99, 99, -1, 2});
  Tensor y = poisoned({3});
  cell_dot(ctx(), x.view(), c.view(), packing_over(offsets), y.view());
  expect_close(y.view(), {12, 34, 7});
}

TEST_P(CellDotTest, BackwardHandComputed) {
  const std::vector<int32_t> offsets = {0, 2, 2, 3};
  const Tensor x = tensor({3, 2}, {1, 2, 3, 4, 5, 6});
  const Tensor c = tensor({3, 2}, {10, 1, 99, 99, -1, 2});
  const Tensor dy = tensor({3}, {2, -1, 0.5});
  Tensor dx = poisoned({3, 2}), dc = poisoned({3, 2});
  cell_dot_backward(ctx(), x.view(), c.view(), dy.view(), packing_over(offsets), dx.view(),
                    dc.view());
  expect_close(dx.view(), {20, 2, -10, -1, -0.5, 1});
  expect_close(dc.view(), {-1, 0, 0, 0, 2.5, 3});
}

TEST_P(CellDotTest, AgreesWithPlainSumsAtAwkwardSizes) {
  for (DType type : storage_types()) {
    SCOPED_TRACE(type);
    store(type);
    const Packing cells = packing_over(kAwkward);
    for (int64_t dim : {0, 1, 2, 3, 31, 33, 64, 257}) {
      const Tensor x = random({cells.tokens(), dim});
      const Tensor c = random({cells.cells(), dim});
      const Tensor dy = random({cells.tokens()});
      const std::vector<double> xs = values_of(x.view()), cs = values_of(c.view());
      const std::vector<double> gs = values_of(dy.view());
      std::vector<double> y_want(gs.size()), dx_want(xs.size()), dc_want(cs.size());
      for (int64_t b = 0; b < cells.cells(); ++b)
        for (int64_t t = cells.begin(b); t < cells.end(b); ++t)
          for (int64_t d = 0; d < dim; ++d) {
            const size_t i = static_cast<size_t>(t * dim + d), j = static_cast<size_t>(b * dim + d);
            y_want[static_cast<size_t>(t)] += xs[i] * cs[j];
            dx_want[i] = gs[static_cast<size_t>(t)] * cs[j];
            dc_want[j] += gs[static_cast<size_t>(t)] * xs[i];
          }
      Tensor y = poisoned({cells.tokens()});
      Tensor dx = poisoned({cells.tokens(), dim}), dc = poisoned({cells.cells(), dim});
      cell_dot(ctx(), x.view(), c.view(), cells, y.view());
      cell_dot_backward(ctx(), x.view(), c.view(), dy.view(), cells, dx.view(), dc.view());
      expect_close(y.view(), y_want, dim);
      expect_close(dx.view(), dx_want);
      expect_close(dc.view(), dc_want, 257);
    }
  }
}

TEST_P(CellDotTest, AGradientThatIsNotWantedChangesNothingElse) {
  const Packing cells = packing_over(kAwkward);
  const Tensor x = random({cells.tokens(), 5});
  const Tensor c = random({cells.cells(), 5});
  const Tensor dy = random({cells.tokens()});
  Tensor dx = poisoned(x.shape()), dc = poisoned(c.shape());
  cell_dot_backward(ctx(), x.view(), c.view(), dy.view(), cells, dx.view(), dc.view());
  Tensor only_dx = poisoned(x.shape()), only_dc = poisoned(c.shape());
  cell_dot_backward(ctx(), x.view(), c.view(), dy.view(), cells, only_dx.view(), {});
  cell_dot_backward(ctx(), x.view(), c.view(), dy.view(), cells, {}, only_dc.view());
  expect_same_bits(only_dx.view(), dx.view());
  expect_same_bits(only_dc.view(), dc.view());
}

TEST_P(CellDotTest, GradientsMatchFiniteDifferences) {
  if (dtype() != DType::f64) GTEST_SKIP() << "finite differences are taken in f64";
  const std::vector<int32_t> offsets = {0, 3, 3, 4, 9};
  const Packing cells = packing_over(offsets);
  Tensor x = random({9, 5}), c = random({4, 5});
  const Tensor dy = random({9});
  Tensor dx = poisoned({9, 5}), dc = poisoned({4, 5});
  cell_dot_backward(ctx(), x.view(), c.view(), dy.view(), cells, dx.view(), dc.view());
  const auto loss = [&] {
    Tensor y = poisoned({9});
    cell_dot(ctx(), x.view(), c.view(), cells, y.view());
    return dot(y.view(), dy.view());
  };
  expect_gradient(x, loss, dx.view());
  expect_gradient(c, loss, dc.view());
}

TEST_P(CellDotTest, SameBitsForAnyThreadCountAndAnyBatch) {
  for (DType type : storage_types()) {
    SCOPED_TRACE(type);
    store(type);
    const Packing cells = packing_over(kAwkward);
    const Tensor x = random({cells.tokens(), 515});
    const Tensor c = random({cells.cells(), 515});
    const Tensor dy = random({cells.tokens()});
    Tensor y = poisoned(dy.shape()), dx = poisoned(x.shape()), dc = poisoned(c.shape());
    cell_dot(ctx(), x.view(), c.view(), cells, y.view());
    cell_dot_backward(ctx(), x.view(), c.view(), dy.view(), cells, dx.view(), dc.view());
    for (int threads : {1, 3, 8}) {
      Context other(test_device(), {.threads = threads, .reference = GetParam().reference});
      Tensor y2 = poisoned(dy.shape()), dx2 = poisoned(x.shape()), dc2 = poisoned(c.shape());
      cell_dot(other, x.view(), c.view(), cells, y2.view());
      cell_dot_backward(other, x.view(), c.view(), dy.view(), cells, dx2.view(), dc2.view());
      expect_same_bits(y2.view(), y.view());
      expect_same_bits(dx2.view(), dx.view());
      expect_same_bits(dc2.view(), dc.view());
    }
    for (int64_t b = 0; b < cells.cells(); ++b) {
      const std::vector<int32_t> alone = {0, static_cast<int32_t>(cells.length(b))};
      const int64_t begin = cells.begin(b), end = cells.end(b);
      Tensor y1 = poisoned({end - begin}), dc1 = poisoned({1, 515});
      cell_dot(ctx(), x.view().rows(begin, end), c.view().rows(b, b + 1), packing_over(alone),
               y1.view());
      cell_dot_backward(ctx(), x.view().rows(begin, end), c.view().rows(b, b + 1),
                        dy.view().rows(begin, end), packing_over(alone), {}, dc1.view());
      expect_same_bits(y1.view(), y.view().rows(begin, end));
      expect_same_bits(dc1.view(), dc.view().rows(b, b + 1));
    }
  }
}

TEST_P(CellDotTest, ErrorsNameWhatWasWanted) {
  const std::vector<int32_t> offsets = {0, 2, 3};
  const Packing cells = packing_over(offsets);
  const Tensor x = zeros({3, 4}), c = zeros({2, 5}), good = zeros({2, 4}), few = zeros({2, 4});
  Tensor y = zeros({3}), long_y = zeros({4});
  expect_error("cell_dot: c must be [2, 4], got [2, 5]",
               [&] { cell_dot(ctx(), x.view(), c.view(), cells, y.view()); });
  expect_error("cell_dot: y must be [3], got [4]",
               [&] { cell_dot(ctx(), x.view(), good.view(), cells, long_y.view()); });
  expect_error("cell_dot: x has 2 tokens, the packing has 3",
               [&] { cell_dot(ctx(), few.view(), good.view(), cells, y.view()); });
  Tensor dc = zeros({1, 4});
  expect_error("cell_dot_backward: dc must be [2, 4], got [1, 4]", [&] {
    cell_dot_backward(ctx(), x.view(), good.view(), std::as_const(y).view(), cells, {}, dc.view());
  });
  Tensor mixed({3}, DType::i64, test_device());
  expect_error(cat("cell_dot: y must be ", dtype(), ", got i64"),
               [&] { cell_dot(ctx(), x.view(), good.view(), cells, mixed.view()); });
}

}  // namespace
}  // namespace scgraft
