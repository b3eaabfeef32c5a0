// SPDX-License-Identifier: Apache-2.0
#include "kernels/embedding_sum.h"

#include <cstring>
#include <numeric>

#include "tests/kernels/packed_cells.h"

namespace scgraft {
namespace {

constexpr Dropout kDropout{.p = 0.4f, .site = 1024};

// Which tokens use each row of a table, built by looking for them.
struct Uses {
  Tensor offsets;
  Tensor tokens;
  Uses(const std::vector<int32_t>& index, int64_t rows) {
    std::vector<int32_t> begins = {0}, users;
    for (int64_t row = 0; row < rows; ++row) {
      for (size_t t = 0; t < index.size(); ++t)
        if (index[t] == row) users.push_back(static_cast<int32_t>(t));
      begins.push_back(static_cast<int32_t>(users.size()));
    }
    offsets = ints_of(begins);
    tokens = ints_of(users);
  }
  RowUses view() const { return {offsets.view(), tokens.view()}; }
};

// Row numbers below `rows`, half of them the last row.
std::vector<int32_t> skewed(int64_t tokens, int64_t rows, uint32_t which) {
  RandomStream stream(5, RandomUse::initialise, which);
  std::vector<int32_t> index(static_cast<size_t>(tokens));
  for (int32_t& i : index)
    i = static_cast<int32_t>(stream.below(2) != 0 ? static_cast<uint64_t>(rows - 1)
                                                  : stream.below(static_cast<uint64_t>(rows)));
  return index;
}

class EmbeddingSumTest : public OpTest {};
INSTANTIATE_OP_TEST(EmbeddingSumTest);

TEST_P(EmbeddingSumTest, AddsOneRowOfEachTable) {
  const Tensor a = tensor({3, 2}, {1, 2, 3, 4, 5, 6});
  const Tensor b = tensor({2, 2}, {10, 20, 30, 40});
  const Tensor ia = ints({2, 0, 2});
  const Tensor ib = ints({1, 1, 0});
  const PackedCells cells({1, 2}, {0, 1});
  const Packing packing = cells.packing();
  Tensor y = poisoned({3, 2});
  embedding_sum(ctx(), a.view(), ia.view(), b.view(), ib.view(), {}, packing, y.view());
  expect_close(y.view(), {35, 46, 31, 42, 15, 26});
  embedding_sum(ctx(), a.view(), ia.view(), {}, {}, {}, packing, y.view());
  expect_close(y.view(), {5, 6, 1, 2, 5, 6});

  const Tensor dy = tensor({3, 2}, {1, 2, 10, 20, 100, 200});
  Tensor da = poisoned({3, 2});
  embedding_sum_backward(ctx(), dy.view(), Uses({2, 0, 2}, 3).view(), {}, packing, da.view());
  expect_close(da.view(), {10, 20, 0, 0, 101, 202});
  Tensor db = poisoned({2, 2});
  embedding_sum_backward(ctx(), dy.view(), Uses({1, 1, 0}, 2).view(), {}, packing, db.view());
  expect_close(db.view(), {100, 200, 11, 22});
}

TEST_P(EmbeddingSumTest, AwkwardSizesFollowTheDocumentedMask) {
  for (DType type : storage_types()) {
    SCOPED_TRACE(type);
    store(type);
    for (const auto& [rows, dim] : awkward_shapes())
      for (int64_t table : {1, 5, 600}) {
        SCOPED_TRACE(cat("tokens ", rows, ", dim ", dim, ", table ", table));
        const PackedCells cells = awkward_cells(rows);
        const Packing packing = cells.packing();
        const Tensor a = random({3, dim});
        const Tensor b = random({table, dim});
        const Tensor dy = random({rows, dim});
        const std::vector<int32_t> first = skewed(rows, 3, 1);
        const std::vector<int32_t> second = skewed(rows, table, 2);
        Tensor y = poisoned({rows, dim}), db = poisoned({table, dim});
        embedding_sum(ctx(), a.view(), ints(first).view(), b.view(), ints(second).view(), kDropout,
                      packing, y.view());
        const Uses uses(second, table);
        embedding_sum_backward(ctx(), dy.view(), uses.view(), kDropout, packing, db.view());

        const std::vector<double> mask = hidden_mask(ctx(), kDropout, cells, dim);
        const std::vector<double> va = values_of(a.view()), vb = values_of(b.view());
        const std::vector<double> grad = product(values_of(dy.view()), mask);
        std::vector<double> want(mask.size());
        std::vector<double> want_db(static_cast<size_t>(table * dim), 0.0);
        for (size_t i = 0; i < mask.size(); ++i) {
          const auto t = i / static_cast<size_t>(dim), f = i % static_cast<size_t>(dim);
          const size_t at_a = static_cast<size_t>(first[t]) * static_cast<size_t>(dim) + f;
          const size_t at_b = static_cast<size_t>(second[t]) * static_cast<size_t>(dim) + f;
          want[i] = va[at_a] + mask[i] * vb[at_b];
          want_db[at_b] += grad[i];
        }
        expect_close(y.view(), want);
        expect_close(db.view(), want_db, rows);
      }
  }
}

// However the work on a table is cut, the gradient of a row is summed alike.
TEST_P(EmbeddingSumTest, UnusedRowsOfTheTableChangeNothing) {
  const PackedCells cells = awkward_cells(257);
  const Packing packing = cells.packing();
  const Tensor dy = random({257, 40});
  const std::vector<int32_t> index(257, 0);
  Tensor one = poisoned({1, 40}), many = poisoned({600, 40});
  embedding_sum_backward(ctx(), dy.view(), Uses(index, 1).view(), kDropout, packing, one.view());
  embedding_sum_backward(ctx(), dy.view(), Uses(index, 600).view(), kDropout, packing, many.view());
  expect_same_bits(std::as_const(many).view().rows(0, 1), one.view());
}

TEST(EmbeddingSum, BackwardMatchesFiniteDifferences) {
  const PackedCells cells({3, 0, 4}, {4, 5, 6});
  const Packing packing = cells.packing();
  Context ctx = reference_context();
  const std::vector<int32_t> first = {0, 1, 1, 2, 0, 1, 1};
  const std::vector<int32_t> second = {1, 1, 0, 1, 3, 3, 1};
  const auto n = Shape{7};
  for (Dropout dropout : {Dropout{}, kDropout}) {
    Tensor a = random_values({3, 9}, DType::f64, 1);
    Tensor b = random_values({4, 9}, DType::f64, 2);
    const Tensor weight = random_values({7, 9}, DType::f64, 3);
    Tensor y(Shape{7, 9}, DType::f64), da(Shape{3, 9}, DType::f64), db(Shape{4, 9}, DType::f64);
    const auto loss = [&] {
      embedding_sum(ctx, a.view(), view_of(first.data(), n), b.view(), view_of(second.data(), n),
                    dropout, packing, y.view());
      return dot(weight.view(), y.view());
    };
    embedding_sum_backward(ctx, weight.view(), Uses(first, 3).view(), {}, packing, da.view());
    embedding_sum_backward(ctx, weight.view(), Uses(second, 4).view(), dropout, packing, db.view());
    expect_gradient(a, loss, da.view());
    expect_gradient(b, loss, db.view());
  }
}

TEST_P(EmbeddingSumTest, ThreadsChangeNothing) {
  const PackedCells cells = awkward_cells(257);
  const Packing packing = cells.packing();
  const Tensor a = random({40, 521}), b = random({5, 521}), dy = random({257, 521});
  const std::vector<int32_t> first = skewed(257, 40, 1), second = skewed(257, 5, 2);
  const Uses uses(second, 5);
  Tensor y = poisoned({257, 521}), db = poisoned({5, 521});
  embedding_sum(ctx(), a.view(), ints(first).view(), b.view(), ints(second).view(), kDropout,
                packing, y.view());
  embedding_sum_backward(ctx(), dy.view(), uses.view(), kDropout, packing, db.view());
  for (int threads : {1, 3, 7}) {
    Context other(test_device(), {.threads = threads, .reference = ctx().reference()});
    Tensor other_y = poisoned({257, 521}), other_db = poisoned({5, 521});
    embedding_sum(other, a.view(), ints(first).view(), b.view(), ints(second).view(), kDropout,
                  packing, other_y.view());
    embedding_sum_backward(other, dy.view(), uses.view(), kDropout, packing, other_db.view());
    expect_same_bits(other_y.view(), y.view());
    expect_same_bits(other_db.view(), db.view());
  }
}

// A cell gets the same embedding, mask included, alone and behind another cell.
TEST_P(EmbeddingSumTest, OtherCellsOfTheBatchChangeNothing) {
  for (DType type : storage_types()) {
    SCOPED_TRACE(type);
    store(type);
    const PackedCells both({4, 6}, {70, 71});
    const PackedCells alone({6}, {71});
    const Packing packing = both.packing(), own = alone.packing();
    const Tensor a = random({3, 40}), b = random({3, 40});
    const std::vector<int32_t> index = {0, 1, 2, 0, 1, 2, 0, 1, 2, 2};
    const std::vector<int32_t> tail(index.begin() + 4, index.end());
    Tensor y = poisoned({10, 40}), one = poisoned({6, 40});
    embedding_sum(ctx(), a.view(), ints(index).view(), b.view(), ints(index).view(), kDropout,
                  packing, y.view());
    embedding_sum(ctx(), a.view(), ints(tail).view(), b.view(), ints(tail).view(), kDropout, own,
                  one.view());
    expect_same_bits(one.view(), y.view().rows(4, 10));
  }
}

TEST_P(EmbeddingSumTest, ErrorsNameTheTableAndTheShapeItShouldHave) {
  const Tensor a = zeros({3, 4}), wide = zeros({3, 5});
  const Tensor ia = ints({0, 1}), longer = ints({0, 1, 2});
  const PackedCells cells({2}, {0});
  const Packing packing = cells.packing();
  Tensor y = zeros({2, 4}), dtable = zeros({3, 4});
  expect_error("embedding_sum: b must be [rows, 4], got [3, 5]", [&] {
    embedding_sum(ctx(), a.view(), ia.view(), wide.view(), ia.view(), {}, packing, y.view());
  });
  expect_error("embedding_sum: ia must be [2], one table row per token, got [3]", [&] {
    embedding_sum(ctx(), a.view(), longer.view(), {}, {}, {}, packing, y.view());
  });
  expect_error("embedding_sum: ia must be i32", [&] {
    embedding_sum(ctx(), a.view(), longs({0, 1}).view(), {}, {}, {}, packing, y.view());
  });
  expect_error("embedding_sum_backward: uses.offsets must be [4], got [2]", [&] {
    embedding_sum_backward(ctx(), y.view(), {ia.view(), ia.view()}, {}, packing, dtable.view());
  });
  expect_error("embedding_sum_backward: uses.tokens must be [2], one entry per token, got [3]",
               [&] {
                 embedding_sum_backward(ctx(), y.view(), {ints({0, 1, 2, 2}).view(), longer.view()},
                                        {}, packing, dtable.view());
               });
}

}  // namespace
}  // namespace scgraft
