// SPDX-License-Identifier: Apache-2.0
#include "kernels/join_columns.h"

#include "tests/kernels/packed_cells.h"

namespace scgraft {
namespace {

class JoinColumnsTest : public OpTest {};
INSTANTIATE_OP_TEST(JoinColumnsTest);

TEST_P(JoinColumnsTest, HandComputed) {
  const Tensor a = tensor({2, 1}, {1, 2}), b = tensor({2, 2}, {3, 4, 5, 6});
  Tensor y = poisoned({2, 3});
  join_columns(ctx(), a.view(), b.view(), y.view());
  expect_close(y.view(), {1, 3, 4, 2, 5, 6});
}

TEST_P(JoinColumnsTest, SplitHandComputed) {
  const Tensor y = tensor({2, 3}, {1, 3, 4, 2, 5, 6});
  Tensor a = poisoned({2, 1}), b = poisoned({2, 2});
  split_columns(ctx(), y.view(), a.view(), b.view());
  expect_close(a.view(), {1, 2});
  expect_close(b.view(), {3, 4, 5, 6});
}

// Split is the transpose of join, and what was joined comes back bit for bit.
TEST_P(JoinColumnsTest, SplitGivesBackWhatWasJoinedAtAwkwardSizes) {
  for (DType type : storage_types()) {
    SCOPED_TRACE(type);
    store(type);
    for (int64_t rows : kAwkwardRows)
      for (const auto& [n, m] : std::vector<std::pair<int64_t, int64_t>>{
               {1, 1}, {8, 8}, {32, 64}, {7, 33}, {512, 1}, {8, 521}, {264, 512}}) {
        SCOPED_TRACE(cat(rows, " rows of ", n, " and ", m));
        const Tensor a = random({rows, n}), b = random({rows, m});
        Tensor y = poisoned({rows, n + m});
        join_columns(ctx(), a.view(), b.view(), y.view());
        const std::vector<double> left = values_of(a.view()), right = values_of(b.view());
        std::vector<double> want;
        for (int64_t t = 0; t < rows; ++t) {
          want.insert(want.end(), left.begin() + t * n, left.begin() + (t + 1) * n);
          want.insert(want.end(), right.begin() + t * m, right.begin() + (t + 1) * m);
        }
        EXPECT_EQ(values_of(y.view()), want);
        Tensor a_again = poisoned({rows, n}), b_again = poisoned({rows, m});
        split_columns(ctx(), y.view(), a_again.view(), b_again.view());
        expect_same_bits(a_again.view(), a.view());
        expect_same_bits(b_again.view(), b.view());
        Tensor only_a = poisoned({rows, n}), only_b = poisoned({rows, m});
        split_columns(ctx(), y.view(), only_a.view(), {});
        split_columns(ctx(), y.view(), {}, only_b.view());
        expect_same_bits(only_a.view(), a.view());
        expect_same_bits(only_b.view(), b.view());
      }
  }
}

TEST_P(JoinColumnsTest, UnalignedRowsGiveTheSameNumbers) {
  const Tensor a = random({5, 8}), b = random({5, 16});
  Tensor y = poisoned({5, 24});
  join_columns(ctx(), a.view(), b.view(), y.view());
  Tensor room = poisoned({5 * 24 + 1});
  join_columns(ctx(), a.view(), b.view(), behind_first(room, {5, 24}));
  expect_same_bits(behind_first(room, {5, 24}), y.view());
}

TEST_P(JoinColumnsTest, ErrorsNameWhatWasWanted) {
  const Tensor a = zeros({3, 4}), b = zeros({3, 2}), short_b = zeros({2, 2});
  Tensor y = zeros({3, 6}), narrow = zeros({3, 5});
  expect_error("join_columns: y must be [3, 6], got [3, 5]",
               [&] { join_columns(ctx(), a.view(), b.view(), narrow.view()); });
  expect_error("join_columns: b must be [3, 2], got [2, 2]",
               [&] { join_columns(ctx(), a.view(), short_b.view(), y.view()); });
  Tensor left = zeros({3, 4}), right = zeros({3, 3});
  expect_error("split_columns: b must be [3, 2], got [3, 3]",
               [&] { split_columns(ctx(), std::as_const(y).view(), left.view(), right.view()); });
  expect_error("at least one of a and b is wanted",
               [&] { split_columns(ctx(), std::as_const(y).view(), {}, {}); });
  Tensor whole({3, 4}, DType::i32, test_device()), out({3, 8}, DType::i32, test_device());
  expect_error("this operation computes on f32",
               [&] { join_columns(ctx(), whole.view(), whole.view(), out.view()); });
}

}  // namespace
}  // namespace scgraft
