// SPDX-License-Identifier: Apache-2.0
#include "kernels/linear.h"

#include "tests/testing/op_test.h"

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

TEST_P(LinearTest, ZeroBLeavesTheFrozenResultBitForBit) {
  const Tensor x = random({37, 40});
  const Tensor w = random({24, 40});
  const Tensor bias = random({24});
  const Tensor a = random({4, 40});
  const Tensor b = zeros({24, 4});
  Tensor frozen = poisoned({37, 24});
  Tensor adapted = poisoned({37, 24});
  const LowRank term{a.view(), b.view(), 2.0, {}};
  linear(ctx(), x.view(), packed(w), bias.view(), {}, nullptr, frozen.view());
  linear(ctx(), x.view(), packed(w), bias.view(), {&term, 1}, nullptr, adapted.view());
  expect_same_bits(adapted.view(), frozen.view());
}

TEST_P(LinearTest, MatchesTheDefinitionOnAwkwardSizes) {
  Context definition(Device::cpu(), {.threads = 1, .reference = true});
  for (int64_t rows : {0, 1, 2, 3, 31, 33, 64, 65, 257}) {
    for (int64_t out : {1, 5, 32}) {
      const int64_t in = 37;
      const std::vector<int32_t> offsets = {0, static_cast<int32_t>(rows / 3),
                                            static_cast<int32_t>(rows)};
      const std::vector<int64_t> ids = {4, 9};
      const Packing packing = Packing::over(offsets, ids);
      const Tensor x = random({rows, in}), w = random({out, in}), bias = random({out});
      const Tensor a = random({3, in}), b = random({out, 3});
      const LowRank term{a.view(), b.view(), 0.7, {.p = 0.25f, .site = 1030}};
      const int64_t k = in * 4;

      Tensor got = poisoned({rows, out}), want = poisoned({rows, out});
      linear(ctx(), x.view(), packed(w), bias.view(), {&term, 1}, &packing, got.view());
      PackedWeight plain;
      plain.pack(definition, w.view(), PackedFor::forward, w.dtype());
      linear(definition, x.view(), plain, bias.view(), {&term, 1}, &packing, want.view());
      expect_close(got.view(), want.view(), k);

      Tensor dx = random({rows, in}), dx_want = dx.clone();
      linear_backward_input(ctx(), got.view(), packed(w, PackedFor::backward_input), {&term, 1},
                            &packing, true, dx.view());
      plain.pack(definition, w.view(), PackedFor::backward_input, w.dtype());
      linear_backward_input(definition, got.view(), plain, {&term, 1}, &packing, true,
                            dx_want.view());
      expect_close(dx.view(), dx_want.view(), k);

      Tensor da = zeros({3, in}), da_want = zeros({3, in});
      Tensor db = zeros({out, 3}), db_want = zeros({out, 3});
      low_rank_backward(ctx(), x.view(), got.view(), term, packing, da.view(), db.view());
      low_rank_backward(definition, x.view(), got.view(), term, packing, da_want.view(),
                        db_want.view());
      expect_close(da.view(), da_want.view(), rows * k);
      expect_close(db.view(), db_want.view(), rows * k);

      Tensor dw = zeros({out, in}), dw_want = zeros({out, in});
      Tensor dbias = zeros({out}), dbias_want = zeros({out});
      linear_backward_weight(ctx(), x.view(), got.view(), packing, dw.view(), dbias.view());
      linear_backward_weight(definition, x.view(), got.view(), packing, dw_want.view(),
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
  const Packing packing = Packing::over(offsets, ids);
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
  Context single(Device::cpu(), {.threads = 1, .reference = GetParam().reference});
  for (int64_t begin : {0, 1, 63, 100, 149}) {
    Tensor some = poisoned({150 - begin, 32});
    linear(single, x.view().rows(begin, 150), packed(w), bias.view(), {}, nullptr, some.view());
    expect_same_bits(some.view(), std::as_const(all).view().rows(begin, 150));
  }
}

// Chunks of cells accumulated one after another give the bits of one call.
TEST_P(LinearTest, GradientsDoNotDependOnHowTheBatchIsCut) {
  const std::vector<int32_t> offsets = {0, 20, 90, 97};
  const Tensor x = random({97, 16}), dy = random({97, 8}), a = random({4, 16}), b = random({8, 4});
  const LowRank term{a.view(), b.view(), 1.5, {}};
  Tensor da = zeros({4, 16}), db = zeros({8, 4}), dw = zeros({8, 16});
  Tensor da2 = zeros({4, 16}), db2 = zeros({8, 4}), dw2 = zeros({8, 16});
  const Packing whole = Packing::over(offsets);
  low_rank_backward(ctx(), x.view(), dy.view(), term, whole, da.view(), db.view());
  linear_backward_weight(ctx(), x.view(), dy.view(), whole, dw.view(), {});
  for (size_t i = 0; i + 1 < offsets.size(); ++i) {
    const std::vector<int32_t> one = {0, offsets[i + 1] - offsets[i]};
    const Packing cell = Packing::over(one);
    const auto xs = x.view().rows(offsets[i], offsets[i + 1]);
    const auto dys = dy.view().rows(offsets[i], offsets[i + 1]);
    low_rank_backward(ctx(), xs, dys, term, cell, da2.view(), db2.view());
    linear_backward_weight(ctx(), xs, dys, cell, dw2.view(), {});
  }
  expect_same_bits(da2.view(), da.view());
  expect_same_bits(db2.view(), db.view());
  expect_same_bits(dw2.view(), dw.view());
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
}

}  // namespace
}  // namespace scgraft
