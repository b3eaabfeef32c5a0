// SPDX-License-Identifier: Apache-2.0
#include "kernels/linear.h"

#include "tests/kernels/packed_cells.h"

namespace scgraft {
namespace {

class LinearTest : public OpTest {
 public:
  PackedWeight packed(const Tensor& w, PackedFor use = PackedFor::forward) {
    PackedWeight p;
    p.pack(ctx(), w.view(), use, w.dtype());
    return p;
  }
};
INSTANTIATE_OP_TEST(LinearTest);

TEST_P(LinearTest, MultipliesByTheTransposedWeightAndAddsTheBias) {
  const Tensor x = tensor({2, 3}, {1, 2, 3, 4, 5, 6});
  const Tensor w = tensor({2, 3}, {1, 0, -1, 2, 1, 0});
  const Tensor b = tensor({2}, {10, 20});
  Tensor y = poisoned({2, 2});
  linear(ctx(), x.view(), packed(w), b.view(), {}, nullptr, y.view());
  expect_close(y.view(), {8, 24, 8, 33});
  Tensor dx = poisoned({2, 3});
  linear_backward_input(ctx(), y.view(), packed(w, PackedFor::backward_input), {}, nullptr, false,
                        dx.view());
  expect_close(dx.view(), {56, 24, -8, 74, 33, -8}, 2);
  linear_backward_input(ctx(), y.view(), packed(w, PackedFor::backward_input), {}, nullptr, true,
                        dx.view());
  expect_close(dx.view(), {112, 48, -16, 148, 66, -16}, 2);
}

TEST_P(LinearTest, AddsLowRankTerms) {
  const Tensor x = tensor({1, 2}, {3, 4});
  const Tensor w = tensor({2, 2}, {1, 0, 0, 1});
  const Tensor a = tensor({1, 2}, {1, -1});
  const Tensor b = tensor({2, 1}, {2, 5});
  Tensor y = poisoned({1, 2});
  const LowRank term{a.view(), b.view(), 0.5, {}};
  linear(ctx(), x.view(), packed(w), {}, {&term, 1}, nullptr, y.view());
  expect_close(y.view(), {3 - 1, 4 - 2.5});
}

// Rows, widths and dropout included, in both directions: B = 0 makes the input's gradient that of
// the frozen product too.
TEST_P(LinearTest, ZeroBLeavesTheFrozenResultBitForBit) {
  for (int64_t rows : {1, 37, 65})
    for (int64_t in : {3, 40, 257})
      for (float p : {0.0f, 0.3f}) {
        SCOPED_TRACE(cat("rows ", rows, ", in ", in, ", dropout ", p));
        const PackedCells cells = awkward_cells(rows);
        const Packing packing = cells.packing();
        const Tensor x = random({rows, in}), w = random({24, in}), bias = random({24});
        const Tensor a = random({4, in}), b = zeros({24, 4});
        const LowRank term{a.view(), b.view(), 2.0, {.p = p, .site = 1030}};
        Tensor frozen = poisoned({rows, 24}), adapted = poisoned({rows, 24});
        linear(ctx(), x.view(), packed(w), bias.view(), {}, nullptr, frozen.view());
        linear(ctx(), x.view(), packed(w), bias.view(), {&term, 1}, &packing, adapted.view());
        expect_same_bits(adapted.view(), frozen.view());
        const PackedWeight back = packed(w, PackedFor::backward_input);
        Tensor dx = poisoned({rows, in}), dx_adapted = poisoned({rows, in});
        linear_backward_input(ctx(), frozen.view(), back, {}, nullptr, false, dx.view());
        linear_backward_input(ctx(), frozen.view(), back, {&term, 1}, &packing, false,
                              dx_adapted.view());
        expect_same_bits(dx_adapted.view(), dx.view());
      }
}

// drop(x) inside the operation is the documented mask times x in front of it, in the result and in
// all three gradients.
TEST_P(LinearTest, DropoutOfATermIsTheDocumentedMask) {
  ctx().random() = {.seed = 77, .step = 5};
  const Dropout dropout{.p = 0.4f, .site = 1031};
  const int64_t rows = 140, in = 521, out = 9, rank = 3;
  const PackedCells cells = awkward_cells(rows);
  const Packing packing = cells.packing();
  const std::vector<double> mask = hidden_mask(ctx(), dropout, cells, in);
  const Tensor x = random({rows, in}), dy = random({rows, out}), a = random({rank, in}),
               b = random({out, rank}), w = zeros({out, in});
  const Tensor masked = tensor({rows, in}, product(values_of(x.view()), mask));
  const LowRank drops{a.view(), b.view(), 0.5, dropout};
  const LowRank plain{a.view(), b.view(), 0.5, {}};

  Tensor y = poisoned({rows, out}), y_want = poisoned({rows, out});
  linear(ctx(), x.view(), packed(w), {}, {&drops, 1}, &packing, y.view());
  linear(ctx(), masked.view(), packed(w), {}, {&plain, 1}, nullptr, y_want.view());
  expect_close(y.view(), y_want.view());

  const PackedWeight back = packed(w, PackedFor::backward_input);
  Tensor dx = poisoned({rows, in}), dx_plain = poisoned({rows, in});
  linear_backward_input(ctx(), dy.view(), back, {&drops, 1}, &packing, false, dx.view());
  linear_backward_input(ctx(), dy.view(), back, {&plain, 1}, nullptr, false, dx_plain.view());
  expect_close(dx.view(), product(values_of(dx_plain.view()), mask));

  Tensor da = zeros({rank, in}), db = zeros({out, rank});
  Tensor da_want = zeros({rank, in}), db_want = zeros({out, rank});
  low_rank_backward(ctx(), x.view(), dy.view(), drops, packing, da.view(), db.view());
  low_rank_backward(ctx(), masked.view(), dy.view(), plain, packing, da_want.view(),
                    db_want.view());
  expect_close(da.view(), da_want.view());
  expect_close(db.view(), db_want.view());
}

// The adapter and the weight it would be merged into are the same function.
TEST_P(LinearTest, ATermEqualsTheMergedWeight) {
  const int64_t in = 33, out = 31, rank = 4;
  const Tensor x = random({65, in}), w = random({out, in}), a = random({rank, in}),
               b = random({out, rank});
  std::vector<double> merged = values_of(w.view());
  const std::vector<double> va = values_of(a.view()), vb = values_of(b.view());
  for (int64_t i = 0; i < out; ++i)
    for (int64_t j = 0; j < in; ++j)
      for (int64_t r = 0; r < rank; ++r)
        merged[static_cast<size_t>(i * in + j)] +=
            0.25 * vb[static_cast<size_t>(i * rank + r)] * va[static_cast<size_t>(r * in + j)];
  const LowRank term{a.view(), b.view(), 0.25, {}};
  Tensor y = poisoned({65, out}), want = poisoned({65, out});
  linear(ctx(), x.view(), packed(w), {}, {&term, 1}, nullptr, y.view());
  linear(ctx(), x.view(), packed(tensor({out, in}, merged)), {}, {}, nullptr, want.view());
  expect_close(y.view(), want.view(), in + rank);
}

TEST_P(LinearTest, AwkwardWidthsAndRanksAgreeWithTheDefinition) {
  Context definition = reference_context();
  const PackedCells cells({33, 0, 2}, {4, 5, 6});
  const Packing packing = cells.packing();
  for (int64_t in : {1, 2, 3, 31, 33, 257})
    for (int64_t out : {1, 2, 3, 31, 33, 257})
      for (int64_t rank : {1, 2, 3, 31, 33}) {
        if (in != 33 && out != 33 && rank != 3) continue;  // each axis alone, and every pair of two
        SCOPED_TRACE(cat("in ", in, ", out ", out, ", rank ", rank));
        const Tensor x = random({35, in}), dy = random({35, out}), w = random({out, in});
        const Tensor a = random({rank, in}), b = random({out, rank});
        const LowRank term{a.view(), b.view(), 0.5, {.p = 0.25f, .site = 1030}};
        const Tensor own_x = on_host(x.view()), own_dy = on_host(dy.view()),
                     own_w = on_host(w.view()), own_a = on_host(a.view()),
                     own_b = on_host(b.view());
        const LowRank own_term{own_a.view(), own_b.view(), 0.5, term.dropout};
        const int64_t k = in + out + rank;
        PackedWeight plain;
        Tensor y = poisoned({35, out}), y_want = on_host(poisoned({35, out}).view());
        plain.pack(definition, own_w.view(), PackedFor::forward, w.dtype());
        linear(ctx(), x.view(), packed(w), {}, {&term, 1}, &packing, y.view());
        linear(definition, own_x.view(), plain, {}, {&own_term, 1}, &packing, y_want.view());
        expect_close(y.view(), y_want.view(), k);
        Tensor dx = poisoned({35, in}), dx_want = on_host(poisoned({35, in}).view());
        plain.pack(definition, own_w.view(), PackedFor::backward_input, w.dtype());
        linear_backward_input(ctx(), dy.view(), packed(w, PackedFor::backward_input), {&term, 1},
                              &packing, false, dx.view());
        linear_backward_input(definition, own_dy.view(), plain, {&own_term, 1}, &packing, false,
                              dx_want.view());
        expect_close(dx.view(), dx_want.view(), k);
        Tensor da = zeros({rank, in}), da_want({rank, in}, dtype());
        Tensor db = zeros({out, rank}), db_want({out, rank}, dtype());
        low_rank_backward(ctx(), x.view(), dy.view(), term, packing, da.view(), db.view());
        low_rank_backward(definition, own_x.view(), own_dy.view(), own_term, packing,
                          da_want.view(), db_want.view());
        expect_close(da.view(), da_want.view(), 35 * k);
        expect_close(db.view(), db_want.view(), 35 * k);
        Tensor dw = zeros({out, in}), dw_want({out, in}, dtype());
        linear_backward_weight(ctx(), x.view(), dy.view(), packing, dw.view(), {});
        linear_backward_weight(definition, own_x.view(), own_dy.view(), packing, dw_want.view(),
                               {});
        expect_close(dw.view(), dw_want.view(), 35);
      }
}

TEST_P(LinearTest, MatchesTheDefinitionOnAwkwardSizes) {
  Context definition = reference_context();
  for (int64_t rows : {0, 1, 2, 3, 31, 33, 64, 65, 257}) {
    for (int64_t out : {1, 5, 32}) {
      const int64_t in = 37;
      const std::vector<int32_t> offsets = {0, static_cast<int32_t>(rows / 3),
                                            static_cast<int32_t>(rows)};
      const std::vector<int64_t> ids = {4, 9};
      const Packing packing = packing_over(offsets, ids);
      const Tensor x = random({rows, in}), w = random({out, in}), bias = random({out});
      const Tensor a = random({3, in}), b = random({out, 3});
      const LowRank term{a.view(), b.view(), 0.7, {.p = 0.25f, .site = 1030}};
      const Tensor own_x = on_host(x.view()), own_w = on_host(w.view()),
                   own_bias = on_host(bias.view()), own_a = on_host(a.view()),
                   own_b = on_host(b.view());
      const LowRank own_term{own_a.view(), own_b.view(), 0.7, term.dropout};
      const int64_t k = in * 4;

      Tensor got = poisoned({rows, out}), want = on_host(poisoned({rows, out}).view());
      linear(ctx(), x.view(), packed(w), bias.view(), {&term, 1}, &packing, got.view());
      PackedWeight plain;
      plain.pack(definition, own_w.view(), PackedFor::forward, w.dtype());
      linear(definition, own_x.view(), plain, own_bias.view(), {&own_term, 1}, &packing,
             want.view());
      expect_close(got.view(), want.view(), k);

      const Tensor own_got = on_host(got.view());
      Tensor dx = random({rows, in}), dx_want = on_host(dx.view());
      linear_backward_input(ctx(), got.view(), packed(w, PackedFor::backward_input), {&term, 1},
                            &packing, true, dx.view());
      plain.pack(definition, own_w.view(), PackedFor::backward_input, w.dtype());
      linear_backward_input(definition, own_got.view(), plain, {&own_term, 1}, &packing, true,
                            dx_want.view());
      expect_close(dx.view(), dx_want.view(), k);

      Tensor da = zeros({3, in}), da_want({3, in}, dtype());
      Tensor db = zeros({out, 3}), db_want({out, 3}, dtype());
      low_rank_backward(ctx(), x.view(), got.view(), term, packing, da.view(), db.view());
      low_rank_backward(definition, own_x.view(), own_got.view(), own_term, packing, da_want.view(),
                        db_want.view());
      expect_close(da.view(), da_want.view(), rows * k);
      expect_close(db.view(), db_want.view(), rows * k);

      Tensor dw = zeros({out, in}), dw_want({out, in}, dtype());
      Tensor dbias = zeros({out}), dbias_want({out}, dtype());
      linear_backward_weight(ctx(), x.view(), got.view(), packing, dw.view(), dbias.view());
      linear_backward_weight(definition, own_x.view(), own_got.view(), packing, dw_want.view(),
                             dbias_want.view());
      expect_close(dw.view(), dw_want.view(), rows);
      expect_close(dbias.view(), dbias_want.view(), rows);
    }
  }
}

TEST_P(LinearTest, GradientsMatchFiniteDifferences) {
  if (dtype() != DType::f64) GTEST_SKIP() << "finite differences are taken in f64";
  const std::vector<int32_t> offsets = {0, 3, 3, 5};
  const std::vector<int64_t> ids = {7, 8, 100};
  const Packing packing = packing_over(offsets, ids);
  Tensor x = random({5, 6}), w = random({4, 6}), bias = random({4}), a = random({2, 6}),
         b = random({4, 2});
  const Tensor weight = random({5, 4});
  auto term = [&] { return LowRank{a.view(), b.view(), 0.5, {.p = 0.3f, .site = 1030}}; };
  auto loss = [&] {
    Tensor y = poisoned({5, 4});
    const LowRank t = term();
    linear(ctx(), x.view(), packed(w), bias.view(), {&t, 1}, &packing, y.view());
    return dot(y.view(), weight.view());
  };
  const LowRank t = term();
  Tensor dx = poisoned({5, 6});
  linear_backward_input(ctx(), weight.view(), packed(w, PackedFor::backward_input), {&t, 1},
                        &packing, false, dx.view());
  expect_gradient(x, loss, dx.view());
  Tensor da = zeros({2, 6}), db = zeros({4, 2}), dw = zeros({4, 6}), dbias = zeros({4});
  low_rank_backward(ctx(), x.view(), weight.view(), t, packing, da.view(), db.view());
  linear_backward_weight(ctx(), x.view(), weight.view(), packing, dw.view(), dbias.view());
  expect_gradient(a, loss, da.view());
  expect_gradient(b, loss, db.view());
  expect_gradient(w, loss, dw.view());
  expect_gradient(bias, loss, dbias.view());
}

// Where a row lies in its panel, which rows share it and how many threads run must not show.
TEST_P(LinearTest, ARowDoesNotDependOnItsNeighbours) {
  const Tensor x = random({150, 48}), w = random({32, 48}), bias = random({32});
  Tensor all = poisoned({150, 32});
  linear(ctx(), x.view(), packed(w), bias.view(), {}, nullptr, all.view());
  Context single(test_device(), {.threads = 1, .reference = GetParam().reference});
  for (int64_t begin : {0, 1, 63, 100, 149}) {
    Tensor some = poisoned({150 - begin, 32});
    linear(single, x.view().rows(begin, 150), packed(w), bias.view(), {}, nullptr, some.view());
    expect_same_bits(some.view(), std::as_const(all).view().rows(begin, 150));
  }
}

// Everything a step computes, on one thread and on several.
TEST_P(LinearTest, ThreadCountDoesNotChangeABit) {
  const int64_t rows = 300, in = 130, out = 70, rank = 8;
  const PackedCells cells = awkward_cells(rows);
  const Packing packing = cells.packing();
  const Tensor x = random({rows, in}), dy = random({rows, out}), w = random({out, in}),
               bias = random({out}), a = random({rank, in}), b = random({out, rank});
  const LowRank term{a.view(), b.view(), 0.5, {.p = 0.2f, .site = 1030}};
  struct Result {
    Tensor y, dx, da, db, dw, dbias;
  };
  const auto step = [&](int threads) {
    Context some(test_device(), {.threads = threads, .reference = GetParam().reference});
    Result r{poisoned({rows, out}), poisoned({rows, in}), zeros({rank, in}),
             zeros({out, rank}),    zeros({out, in}),     zeros({out})};
    PackedWeight p;
    p.pack(some, w.view(), PackedFor::forward, dtype());
    linear(some, x.view(), p, bias.view(), {&term, 1}, &packing, r.y.view());
    PackedWeight back;
    back.pack(some, w.view(), PackedFor::backward_input, dtype());
    linear_backward_input(some, dy.view(), back, {&term, 1}, &packing, false, r.dx.view());
    low_rank_backward(some, x.view(), dy.view(), term, packing, r.da.view(), r.db.view());
    linear_backward_weight(some, x.view(), dy.view(), packing, r.dw.view(), r.dbias.view());
    EXPECT_EQ(some.scratch().used(), 0);
    return r;
  };
  const Result want = step(1);
  for (int threads : {2, 3, 8}) {
    const Result got = step(threads);
    expect_same_bits(got.y.view(), want.y.view());
    expect_same_bits(got.dx.view(), want.dx.view());
    expect_same_bits(got.da.view(), want.da.view());
    expect_same_bits(got.db.view(), want.db.view());
    expect_same_bits(got.dw.view(), want.dw.view());
    expect_same_bits(got.dbias.view(), want.dbias.view());
  }
}

// One batch of two cells or two batches of one, low-rank term and its dropout included.
TEST_P(LinearTest, ABatchOfTwoEqualsTwoBatchesOfOne) {
  const PackedCells both({50, 87}, {70, 71});
  const Packing packing = both.packing();
  const Tensor x = random({137, 48}), dy = random({137, 32}), w = random({32, 48}),
               a = random({4, 48}), b = random({32, 4});
  const LowRank term{a.view(), b.view(), 1.5, {.p = 0.3f, .site = 1030}};
  const PackedWeight forward = packed(w), back = packed(w, PackedFor::backward_input);
  Tensor y = poisoned({137, 32}), dx = poisoned({137, 48});
  linear(ctx(), x.view(), forward, {}, {&term, 1}, &packing, y.view());
  linear_backward_input(ctx(), dy.view(), back, {&term, 1}, &packing, false, dx.view());
  for (size_t cell = 0; cell < 2; ++cell) {
    const int64_t begin = both.offsets[cell], end = both.offsets[cell + 1];
    const PackedCells one({static_cast<int32_t>(end - begin)}, {both.ids[cell]});
    const Packing own = one.packing();
    Tensor y1 = poisoned({end - begin, 32}), dx1 = poisoned({end - begin, 48});
    linear(ctx(), x.view().rows(begin, end), forward, {}, {&term, 1}, &own, y1.view());
    linear_backward_input(ctx(), dy.view().rows(begin, end), back, {&term, 1}, &own, false,
                          dx1.view());
    expect_same_bits(y1.view(), y.view().rows(begin, end));
    expect_same_bits(dx1.view(), dx.view().rows(begin, end));
  }
}

// Chunks of cells accumulated one after another give the bits of one call.
TEST_P(LinearTest, GradientsDoNotDependOnHowTheBatchIsCut) {
  const std::vector<int32_t> offsets = {0, 20, 90, 97};
  const std::vector<int64_t> ids = {5, 6, 7};
  const Tensor x = random({97, 16}), dy = random({97, 8}), a = random({4, 16}), b = random({8, 4});
  const LowRank term{a.view(), b.view(), 1.5, {.p = 0.3f, .site = 1030}};
  Tensor da = zeros({4, 16}), db = zeros({8, 4}), dw = zeros({8, 16}), dbias = zeros({8});
  Tensor da2 = zeros({4, 16}), db2 = zeros({8, 4}), dw2 = zeros({8, 16}), dbias2 = zeros({8});
  const Packing whole = packing_over(offsets, ids);
  low_rank_backward(ctx(), x.view(), dy.view(), term, whole, da.view(), db.view());
  linear_backward_weight(ctx(), x.view(), dy.view(), whole, dw.view(), dbias.view());
  for (size_t i = 0; i + 1 < offsets.size(); ++i) {
    const std::vector<int32_t> one = {0, offsets[i + 1] - offsets[i]};
    const Packing cell = packing_over(one, std::span(ids).subspan(i, 1));
    const auto xs = x.view().rows(offsets[i], offsets[i + 1]);
    const auto dys = dy.view().rows(offsets[i], offsets[i + 1]);
    low_rank_backward(ctx(), xs, dys, term, cell, da2.view(), db2.view());
    linear_backward_weight(ctx(), xs, dys, cell, dw2.view(), dbias2.view());
  }
  expect_same_bits(da2.view(), da.view());
  expect_same_bits(db2.view(), db.view());
  expect_same_bits(dw2.view(), dw.view());
  expect_same_bits(dbias2.view(), dbias.view());
}

TEST_P(LinearTest, Bf16WeightsStayWithinTheirRounding) {
  if (GetParam().reference) GTEST_SKIP() << "bf16 products are a fast path";
  const Tensor x = random({70, 64}), w = random({16, 64});
  Tensor got = poisoned({70, 16}), want = poisoned({70, 16});
  PackedWeight p;
  p.pack(ctx(), w.view(), PackedFor::forward, DType::bf16);
  linear(ctx(), x.view(), p, {}, {}, nullptr, got.view());
  linear(ctx(), x.view(), packed(w), {}, {}, nullptr, want.view());
  const std::vector<double> g = values_of(got.view()), e = values_of(want.view());
  // Both factors are rounded to 8 bits: the error of a sum of 64 products of unit size.
  for (size_t i = 0; i < g.size(); ++i) ASSERT_NEAR(g[i], e[i], 2 * 3.9e-3 * 8 * 3);
}

TEST_P(LinearTest, ErrorsNameTheShapeTheyWanted) {
  const Tensor w = random({4, 6});
  Tensor x = zeros({2, 5}), y = zeros({2, 4});
  expect_error("rows must be [rows, 6], got [2, 5]",
               [&] { linear(ctx(), x.view(), packed(w), {}, {}, nullptr, y.view()); });
  Tensor good = zeros({2, 6}), wrong = zeros({2, 3});
  expect_error("result must be [2, 4], got [2, 3]",
               [&] { linear(ctx(), good.view(), packed(w), {}, {}, nullptr, wrong.view()); });
  expect_error("packed for the other direction", [&] {
    linear(ctx(), good.view(), packed(w, PackedFor::backward_input), {}, {}, nullptr, y.view());
  });
  expect_error("the weight has not been packed",
               [&] { linear(ctx(), good.view(), PackedWeight(), {}, {}, nullptr, y.view()); });
  const Tensor a = random({3, 6}), b = random({4, 3}), narrow = random({4, 2}), bias = random({3});
  const auto run = [&](const LowRank& term, const Packing* packing) {
    linear(ctx(), good.view(), packed(w), {}, {&term, 1}, packing, y.view());
  };
  expect_error("linear: low-rank b must be [4, 3], got [4, 2]", [&] {
    run({a.view(), narrow.view(), 1, {}}, nullptr);
  });
  expect_error("linear: low-rank a must be [rank, 6], got [4, 2]", [&] {
    run({narrow.view(), b.view(), 1, {}}, nullptr);
  });
  const LowRank drops{a.view(), b.view(), 1, {.p = 0.5f, .site = 1030}};
  expect_error("linear: dropout 0.5 needs the packing of the rows, got none",
               [&] { run(drops, nullptr); });
  // Without ids the mask would be a function of the place in the batch.
  const std::vector<int32_t> offsets = {0, 2};
  const Packing nameless = packing_over(offsets);
  expect_error("linear: dropout needs the id of each of the 1 cells, got 0",
               [&] { run(drops, &nameless); });
  expect_error("linear: bias must be [4]",
               [&] { linear(ctx(), good.view(), packed(w), bias.view(), {}, nullptr, y.view()); });
  const Tensor dy = random({2, 4});
  Tensor da = zeros({3, 5}), dw = zeros({6, 4});
  expect_error("low_rank_backward: da must be [3, 6], got [3, 5]", [&] {
    low_rank_backward(ctx(), good.view(), dy.view(), {a.view(), b.view(), 1, {}}, nameless,
                      da.view(), {});
  });
  expect_error("linear_backward_weight: dweight must be [4, 6], got [6, 4]", [&] {
    linear_backward_weight(ctx(), good.view(), dy.view(), nameless, dw.view(), {});
  });
  const Packing none;
  expect_error("the packing has no offsets",
               [&] { linear_backward_weight(ctx(), good.view(), dy.view(), none, {}, {}); });
}

}  // namespace
}  // namespace scgraft
