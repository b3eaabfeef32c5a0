// SPDX-License-Identifier: Apache-2.0
#include "model/preprocess.h"

#include <cmath>
#include <limits>

#include "tests/io/h5ad_fixture.h"
#include "tests/testing/op_test.h"

namespace scgraft {
namespace {

SparseRows two_cells() {
  SparseRows rows;
  rows.first_row = 7;
  rows.columns = 4;
  rows.offsets = {0, 3, 3, 5};
  rows.column = {0, 1, 3, 0, 2};
  rows.value = {1, 2, 300, 0.5f, 1.5f};
  return rows;
}

// In f32, as on f32 data in Python.
float expected(float value, float total) { return std::log1p(value / (total / 1e4f)); }

TEST(PreprocessTest, EveryCellIsDividedByItsTotalAndLogged) {
  Context ctx;
  SparseRows rows = two_cells();
  normalise_log1p(ctx, rows, 1e4);
  EXPECT_EQ(rows.value, (std::vector<float>{expected(1, 303), expected(2, 303), expected(300, 303),
                                            expected(0.5f, 2), expected(1.5f, 2)}));
}

TEST(PreprocessTest, ExpressionSumsToTheTargetAgain) {
  std::vector<float> values;
  for (int i = 1; i <= 1000; ++i) values.push_back(static_cast<float>(i % 37 + 1));
  normalise_log1p(values, total_of(values), 5000);
  double sum = 0;
  for (const float value : values) sum += std::expm1(static_cast<double>(value));
  EXPECT_NEAR(sum, 5000, 1e-3);
}

TEST(PreprocessTest, ACellOfZerosStaysAsItIs) {
  std::vector<float> values{0, 0};
  normalise_log1p(values, 0, 1e4);
  EXPECT_EQ(values, (std::vector<float>{0, 0}));
}

TEST(PreprocessTest, WhatIsNoExpressionIsRefusedByCellAndColumn) {
  SparseRows rows = two_cells();
  require_expression(rows, "a.h5ad", "X");
  rows.value[4] = -1;
  expect_data_error("E-VALUES-NEGATIVE", "cell 9, gene column 2",
                    [&] { require_expression(rows, "a.h5ad", "X"); });
  rows.value[1] = std::numeric_limits<float>::infinity();
  expect_data_error("E-VALUES-NONFINITE", "cell 7, gene column 1",
                    [&] { require_expression(rows, "a.h5ad", "X"); });
}

}  // namespace
}  // namespace scgraft
