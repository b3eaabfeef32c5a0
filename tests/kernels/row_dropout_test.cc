// SPDX-License-Identifier: Apache-2.0
#include "kernels/row_dropout.h"

#include <cmath>

#include "tests/kernels/packed_cells.h"

namespace scgraft {
namespace {

constexpr Dropout kDropout{.p = 0.25f, .site = 1024 + 2};

class RowDropoutTest : public OpTest {};
INSTANTIATE_OP_TEST(RowDropoutTest);

// p = 1/4: what is kept is divided by 3/4.
TEST_P(RowDropoutTest, AwkwardSizesFollowTheDocumentedMask) {
  for (DType type : storage_types()) {
    SCOPED_TRACE(type);
    store(type);
    for (const auto& [rows, dim] : awkward_shapes()) {
      SCOPED_TRACE(cat("rows ", rows, ", dim ", dim));
      const PackedCells cells = awkward_cells(rows);
      const Packing packing = cells.packing();
      const Tensor x = random({rows, dim});
      Tensor y = poisoned({rows, dim});
      row_dropout(ctx(), x.view(), kDropout, &packing, y.view());
      const std::vector<double> factor = hidden_mask(ctx(), kDropout, cells, dim);
      for (double v : factor) ASSERT_TRUE(v == 0 || std::abs(v - 4.0 / 3) < 1e-6);
      expect_close(y.view(), product(values_of(x.view()), factor));
      row_dropout(ctx(), x.view(), {}, nullptr, y.view());
      expect_same_bits(y.view(), x.view());
    }
  }
}

// The rows of a cell come out the same whatever else is in the batch, and wherever they lie.
TEST_P(RowDropoutTest, OtherCellsOfTheBatchChangeNothing) {
  for (DType type : storage_types()) {
    SCOPED_TRACE(type);
    store(type);
    const PackedCells together({5, 90, 7}, {21, 22, 23});
    const PackedCells alone({90}, {22});
    const Packing a = together.packing();
    const Packing b = alone.packing();
    const Tensor x = random({102, 40});
    Tensor y = poisoned({102, 40}), other = poisoned({90, 40});
    row_dropout(ctx(), x.view(), kDropout, &a, y.view());
    row_dropout(ctx(), x.view().rows(5, 95), kDropout, &b, other.view());
    expect_same_bits(other.view(), y.view().rows(5, 95));
  }
}

TEST_P(RowDropoutTest, WorksInPlaceAndOnAnyThreads) {
  const PackedCells cells = awkward_cells(257);
  const Packing packing = cells.packing();
  const Tensor x = random({257, 521});
  Tensor y = poisoned({257, 521});
  row_dropout(ctx(), x.view(), kDropout, &packing, y.view());
  for (int threads : {1, 3, 7}) {
    Context other(test_device(), {.threads = threads, .reference = ctx().reference()});
    Tensor in_place = x.clone();
    row_dropout(other, in_place.view(), kDropout, &packing, in_place.view());
    expect_same_bits(in_place.view(), y.view());
  }
}

TEST_P(RowDropoutTest, ErrorsNameTheTensorAndTheShapeItShouldHave) {
  const Tensor x = zeros({4, 9});
  Tensor y = zeros({4, 9}), wrong = zeros({4, 8});
  expect_error("row_dropout: y must have the shape of x, [4, 9], got [4, 8]",
               [&] { row_dropout(ctx(), x.view(), {}, nullptr, wrong.view()); });
  expect_error("row_dropout: dropout 0.25 needs the packing",
               [&] { row_dropout(ctx(), x.view(), kDropout, nullptr, y.view()); });
}

}  // namespace
}  // namespace scgraft
