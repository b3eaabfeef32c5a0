// SPDX-License-Identifier: Apache-2.0
#include "kernels/dropout_rows.h"

#include "tests/kernels/packed_cells.h"

namespace scgraft {
namespace {

constexpr Dropout kDropout{.p = 0.3f, .site = 1024 + 5};

// Factors of one row by the definition.
std::vector<double> defined(const RowDropout& drop, int64_t row, int64_t dim) {
  std::vector<double> factors;
  drop.each(
      row, dim, [](int64_t) { return 1.0; },
      [&](int64_t, double dropped) { factors.push_back(dropped); });
  return factors;
}

// Factors of features [begin, end) of one row by the vector code.
std::vector<double> drawn(const RowDropout& drop, int64_t row, int64_t begin, int64_t end) {
  std::vector<double> factors;
  const Keep keep = drop.keep();
  drop.pieces(row, begin, end, [&](int64_t f, int64_t n, const uint16_t* lanes) {
    EXPECT_EQ(f, begin + static_cast<int64_t>(factors.size()));
    for (int64_t i = 0; i < n; ++i) factors.push_back(double{keep(lanes[i], 1.0f)});
  });
  return factors;
}

TEST(RowDropout, VectorCodeAndLoopDrawTheDocumentedMask) {
  const PackedCells cells({3, 0, 70}, {5, 6, (int64_t{1} << 32) + 9});
  const Packing packing = cells.packing();
  for (uint64_t seed : {uint64_t{0}, uint64_t{0xfedcba9876543210u}}) {
    Context ctx = fast_context();
    ctx.random() = {seed, 17};
    const RowDropout drop("test", ctx, kDropout, &packing, cells.rows());
    for (int64_t dim : {1, 7, 8, 9, 127, 128, 129, 512, 513, 1536, 1545}) {
      const std::vector<double> want = hidden_mask(ctx, kDropout, cells, dim);
      for (int64_t row = 0; row < cells.rows(); ++row) {
        const auto first = want.begin() + row * dim;
        const std::vector<double> mine(first, first + dim);
        ASSERT_EQ(defined(drop, row, dim), mine) << "row " << row << ", dim " << dim;
        ASSERT_EQ(drawn(drop, row, 0, dim), mine) << "row " << row << ", dim " << dim;
        const int64_t middle = dim / 16 * 8;
        ASSERT_EQ(drawn(drop, row, middle, dim), std::vector<double>(first + middle, first + dim));
      }
    }
  }
}

TEST(RowDropout, KeepsTheRightShareAndTheMean) {
  const PackedCells cells({300}, {1});
  const Packing packing = cells.packing();
  constexpr int64_t kDim = 512;
  for (float p : {0.1f, 0.2f, 0.5f, 0.9f}) {
    Context ctx = fast_context();
    const RowDropout drop("test", ctx, {p, 1024}, &packing, cells.rows());
    double sum = 0, kept = 0;
    for (int64_t row = 0; row < cells.rows(); ++row)
      for (double factor : drawn(drop, row, 0, kDim)) {
        sum += factor;
        kept += factor > 0 ? 1 : 0;
      }
    const double n = static_cast<double>(cells.rows() * kDim);
    // Five standard deviations of a binomial share.
    const double limit = 5 * std::sqrt(double{p} * (1 - double{p}) / n);
    EXPECT_NEAR(kept / n, 1 - double{p}, limit);
    EXPECT_NEAR(sum / n, 1.0, limit / (1 - double{p}));
  }
}

TEST(RowDropout, SitesStepsSeedsCellsAndRowsDiffer) {
  const PackedCells cells({2, 2}, {8, 9});
  const Packing packing = cells.packing();
  Context ctx = fast_context();
  const auto mask = [&](uint32_t site, int64_t row) {
    return drawn(RowDropout("test", ctx, {0.5f, site}, &packing, 4), row, 0, 64);
  };
  const std::vector<double> base = mask(1024, 0);
  EXPECT_EQ(mask(1024, 0), base);
  EXPECT_NE(mask(1025, 0), base);
  EXPECT_NE(mask(1024, 1), base);
  EXPECT_NE(mask(1024, 2), base);
  ctx.random().step = 1;
  EXPECT_NE(mask(1024, 0), base);
  ctx.random() = {1, 0};
  EXPECT_NE(mask(1024, 0), base);
  ctx.random() = {uint64_t{1} << 32, 0};
  EXPECT_NE(mask(1024, 0), base);
}

TEST(RowDropout, SwitchedOffItNeedsNoPackingAndChangesNothing) {
  Context ctx = fast_context();
  const RowDropout drop("test", ctx, {}, nullptr, 4);
  EXPECT_FALSE(drop.active());
  EXPECT_EQ(defined(drop, 3, 5), std::vector<double>(5, 1.0));
}

TEST(RowDropout, ErrorsNameWhatIsMissing) {
  Context ctx = fast_context();
  const PackedCells cells({2, 2}, {8, 9});
  const Packing packing = cells.packing();
  const Packing nameless = packing_over(cells.offsets);
  const auto make = [&](float p, const Packing* with, int64_t rows) {
    return [&ctx, p, with, rows] { RowDropout("test", ctx, {p, 1024}, with, rows); };
  };
  expect_error("test: dropout must be in [0, 1), got 1", make(1, &packing, 4));
  expect_error("test: dropout must be in [0, 1), got -0.5", make(-0.5f, &packing, 4));
  expect_error("test: dropout must be in [0, 1), got nan", make(NAN, &packing, 4));
  expect_error("keeps nothing", make(0.999999f, &packing, 4));
  expect_error("test: dropout 0.5 needs the packing of the rows", make(0.5f, nullptr, 4));
  expect_error("must describe 5 rows, got 4", make(0.5f, &packing, 5));
  expect_error("needs the id of each of the 2 cells, got 0", make(0.5f, &nameless, 4));
}

}  // namespace
}  // namespace scgraft
