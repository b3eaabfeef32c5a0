// SPDX-License-Identifier: Apache-2.0
#include "kernels/linear.h"

#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "kernels/activation.h"
#include "kernels/relu_dropout.h"
#include "runtime/gpu/driver.h"
#include "runtime/gpu/emulator.h"
#include "runtime/gpu/libraries.h"
#include "runtime/gpu/library_products.h"
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

// On the emulated device a library that checks what it is told stands for cuBLASLt; on a GPU it is
// the real one.
std::string why_no_cublaslt() {
  if (cuda_device_count() == 0) return "this machine has no CUDA device";
  if constexpr (kBuiltWithCuda) {
    if (!test_library().empty()) setenv("SCGRAFT_CUBLASLT", test_library().c_str(), 1);
    return gpu::cublaslt_library().problem;
  }
  return {};
}
OpMode by_cublaslt(OpMode mode) {
  mode.name += "_by_cublaslt";
  if (mode.missing.empty()) mode.missing = why_no_cublaslt();
  if (mode.missing.empty()) {
    mode.device = Device::cuda();
    mode.linear = LinearBackend::cublaslt;
  }
  return mode;
}
// The real library's algorithm, and with it the last bits of a row, may change with their number.
bool chooses_by_rows(const OpMode& mode) {
  return mode.linear != LinearBackend::own && test_library().empty();
}
INSTANTIATE_TEST_SUITE_P(Library, LinearTest,
                         ::testing::Values(by_cublaslt({Device::cpu(), false, DType::f32, "f32"})),
                         [](const auto& mode) { return mode.param.name; });

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
  expect_close(y.view(), y_want.view(), in);

  const PackedWeight back = packed(w, PackedFor::backward_input);
  Tensor dx = poisoned({rows, in}), dx_plain = poisoned({rows, in});
  linear_backward_input(ctx(), dy.view(), back, {&drops, 1}, &packing, false, dx.view());
  linear_backward_input(ctx(), dy.view(), back, {&plain, 1}, nullptr, false, dx_plain.view());
  expect_close(dx.view(), product(values_of(dx_plain.view()), mask), out);

  Tensor da = zeros({rank, in}), db = zeros({out, rank});
  Tensor da_want = zeros({rank, in}), db_want = zeros({out, rank});
  low_rank_backward(ctx(), x.view(), dy.view(), drops, packing, da.view(), db.view());
  low_rank_backward(ctx(), masked.view(), dy.view(), plain, packing, da_want.view(),
                    db_want.view());
  expect_close(da.view(), da_want.view(), rows + out);
  expect_close(db.view(), db_want.view(), rows + in);
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
  if (chooses_by_rows(GetParam())) GTEST_SKIP() << "cuBLASLt chooses by the number of rows";
  Context single(test_device(),
                 {.threads = 1, .reference = GetParam().reference, .linear = GetParam().linear});
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
    Context some(
        test_device(),
        {.threads = threads, .reference = GetParam().reference, .linear = GetParam().linear});
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
  if (chooses_by_rows(GetParam())) GTEST_SKIP() << "cuBLASLt chooses by the number of rows";
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

// Many rows and columns are cut into larger tiles than few; sums do not show it. Both directions.
TEST_P(LinearTest, TheSizeOfTilesDoesNotShow) {
  if (chooses_by_rows(GetParam())) GTEST_SKIP() << "cuBLASLt chooses by the number of rows";
  const int64_t rows = 257, wide = 5504, narrow = 8;
  const Tensor x = random({rows, narrow}), w = random({wide, narrow}), bias = random({wide});
  const Tensor v = random({narrow, wide}), dy = random({rows, narrow});
  const PackedWeight forward = packed(w), back = packed(v, PackedFor::backward_input);
  Tensor y = poisoned({rows, wide}), dx = poisoned({rows, wide});
  linear(ctx(), x.view(), forward, bias.view(), {}, nullptr, y.view());
  linear_backward_input(ctx(), dy.view(), back, {}, nullptr, false, dx.view());
  for (int64_t begin : {int64_t{0}, int64_t{130}, rows - 3}) {
    Tensor some = poisoned({3, wide});
    linear(ctx(), x.view().rows(begin, begin + 3), forward, bias.view(), {}, nullptr, some.view());
    expect_same_bits(some.view(), std::as_const(y).view().rows(begin, begin + 3));
    linear_backward_input(ctx(), dy.view().rows(begin, begin + 3), back, {}, nullptr, false,
                          some.view());
    expect_same_bits(some.view(), std::as_const(dx).view().rows(begin, begin + 3));
  }
}

// More cells than partial sums of a large weight have room for at once, and a cell that is summed
// in pieces.
TEST_P(LinearTest, ManyCellsAreSummedInOrder) {
  for (int64_t width : {24, 512}) {
    std::vector<int32_t> lengths(20, 1);
    lengths[3] = 0;
    if (width == 24) lengths[7] = 1100;
    std::vector<int64_t> ids(lengths.size());
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int64_t>(i);
    const PackedCells cells(lengths, ids);
    const Packing packing = cells.packing();
    const int64_t rows = cells.rows();
    const Tensor x = random({rows, width}), dy = random({rows, width});
    Tensor dw = random({width, width}), dbias = random({width});
    Tensor dw_one = dw.clone(), dbias_one = dbias.clone();
    linear_backward_weight(ctx(), x.view(), dy.view(), packing, dw.view(), dbias.view());
    for (size_t cell = 0; cell < lengths.size(); ++cell) {
      const PackedCells one({lengths[cell]}, {ids[cell]});
      const int64_t begin = cells.offsets[cell], end = cells.offsets[cell + 1];
      linear_backward_weight(ctx(), x.view().rows(begin, end), dy.view().rows(begin, end),
                             one.packing(), dw_one.view(), dbias_one.view());
    }
    expect_same_bits(dw.view(), dw_one.view());
    expect_same_bits(dbias.view(), dbias_one.view());
  }
}

// The epilogues there are, by what they hold.
struct EpilogueCase {
  bool gelu, pre, residual, in_place;
};
constexpr EpilogueCase kEpilogues[] = {{true, false, false, false}, {true, true, false, false},
                                       {false, false, true, false}, {false, false, true, true},
                                       {true, true, true, false},   {true, false, true, true}};
std::string name_of(const EpilogueCase& c) {
  return cat(c.gelu ? "gelu " : "", c.pre ? "kept " : "", c.residual ? "residual " : "",
             c.in_place ? "in place" : "");
}

// gelu(z), or z, + residual in f64.
std::vector<double> finished(std::vector<double> z, const EpilogueCase& c,
                             const std::vector<double>& residual) {
  for (size_t i = 0; i < z.size(); ++i) {
    if (c.gelu) z[i] *= 0.5 * std::erfc(-z[i] / std::sqrt(2.0));
    if (c.residual) z[i] += residual[i];
  }
  return z;
}

// Fixtures of both rows of types run these.
struct EpilogueSizes {
  int64_t rows, in, out;
};
constexpr EpilogueSizes kEpilogueSizes[] = {{0, 3, 5},   {1, 1, 1},    {2, 7, 3},    {3, 8, 31},
                                            {31, 9, 33}, {65, 40, 24}, {140, 33, 72}};

// Every epilogue, with bias and a low-rank term, against formulas in f64 on the z of the same call
// without one; z itself has its own tests. Bits: z does not depend on being kept, nor y on that,
// on the place of the residual or on the other rows.
void check_epilogues(OpTest& t, const std::function<PackedWeight(const Tensor&)>& pack) {
  for (const EpilogueSizes& s : kEpilogueSizes) {
    const PackedCells cells = awkward_cells(s.rows);
    const Packing packing = cells.packing();
    const Tensor x = t.random({s.rows, s.in}), bias = t.random({s.out}), a = t.random({2, s.in}),
                 b = t.random({s.out, 2}), residual = t.random({s.rows, s.out});
    const Tensor weight = t.random({s.out, s.in});
    const PackedWeight w = pack(weight);
    const LowRank term{a.view(), b.view(), 0.5, {.p = 0.25f, .site = 1030}};
    Tensor z = t.poisoned({s.rows, s.out});
    linear(t.ctx(), x.view(), w, bias.view(), {&term, 1}, &packing, z.view());
    Tensor plain_gelu = t.poisoned({s.rows, s.out});
    activation(t.ctx(), Activation::gelu, z.view(), plain_gelu.view());
    for (const EpilogueCase& c : kEpilogues) {
      SCOPED_TRACE(cat(s.rows, " rows, ", s.in, " to ", s.out, ": ", name_of(c)));
      Tensor pre = t.poisoned({s.rows, s.out});
      Tensor y = c.in_place ? residual.clone() : t.poisoned({s.rows, s.out});
      const LinearEpilogue e{
          .gelu = c.gelu,
          .pre = c.pre ? pre.view() : TensorView(),
          .residual = !c.residual ? ConstTensorView()
                                  : (c.in_place ? std::as_const(y).view() : residual.view())};
      linear(t.ctx(), x.view(), w, bias.view(), {&term, 1}, &packing, y.view(), e);
      EXPECT_EQ(t.ctx().scratch().used(), 0);
      if (c.pre) expect_same_bits(pre.view(), z.view());
      if (c.gelu && !c.residual) expect_same_bits(y.view(), plain_gelu.view());
      // 1 + erf is rounded beside 1, and a residual may cancel: errors are those of z and residual.
      const std::vector<double> got = values_of(y.view()), from = values_of(z.view()),
                                other = values_of(residual.view()), want = finished(from, c, other);
      const Tolerance close = tolerance(t.dtype(), 1);
      // Without gelu z is not rounded before the residual is added, and here it was.
      for (size_t i = 0; i < want.size(); ++i)
        ASSERT_NEAR(got[i], want[i],
                    close.rtol * (std::abs(want[i]) + std::abs(from[i]) + std::abs(other[i])))
            << i;
      for (int64_t begin : {int64_t{0}, s.rows / 2, s.rows - 1}) {
        if (begin < 0 || c.in_place || s.rows < 2 || chooses_by_rows(t.GetParam())) continue;
        LinearEpilogue some = e;
        Tensor pre1 = t.poisoned({1, s.out}), y1 = t.poisoned({1, s.out}),
               y1_all = t.poisoned({s.rows, s.out});
        some.pre = c.pre ? pre1.view() : TensorView();
        some.residual = c.residual ? residual.view().rows(begin, begin + 1) : ConstTensorView();
        LinearEpilogue all = e;
        all.pre = c.pre ? pre.view() : TensorView();
        linear(t.ctx(), x.view(), w, bias.view(), {}, nullptr, y1_all.view(), all);
        linear(t.ctx(), x.view().rows(begin, begin + 1), w, bias.view(), {}, nullptr, y1.view(),
               some);
        expect_same_bits(y1.view(), std::as_const(y1_all).view().rows(begin, begin + 1));
        if (c.pre) expect_same_bits(pre1.view(), std::as_const(pre).view().rows(begin, begin + 1));
      }
    }
  }
}

// relu in the epilogue is relu_dropout() of the z of the same call without it, bit for bit, whether
// bits are wanted or not; `wide`: y is f32.
void check_relu_epilogues(OpTest& t, const std::function<PackedWeight(const Tensor&)>& pack,
                          bool wide = false) {
  for (const EpilogueSizes& s : kEpilogueSizes)
    for (const float p : {0.0f, 0.3f}) {
      SCOPED_TRACE(cat(s.rows, " rows, ", s.in, " to ", s.out, ", dropout ", p));
      const PackedCells cells = awkward_cells(s.rows);
      const Packing packing = cells.packing();
      const Tensor x = t.random({s.rows, s.in}), bias = t.random({s.out}), a = t.random({2, s.in}),
                   b = t.random({s.out, 2});
      const Tensor weight = t.random({s.out, s.in});
      const PackedWeight w = pack(weight);
      const LowRank term{a.view(), b.view(), 0.5, {.p = 0.25f, .site = 1030}};
      const Dropout dropout{.p = p, .site = 1031};
      const auto made = [&] { return t.poisoned({s.rows, s.out}, wide ? DType::f32 : t.dtype()); };
      const auto bytes = [&] {
        const int64_t per_row = (s.out + 7) / 8;
        const Tensor flat =
            t.bytes(std::vector<uint8_t>(static_cast<size_t>(s.rows * per_row), 77));
        Tensor room(Shape{s.rows, per_row}, DType::u8, test_device());
        copy(flat.view().reshape(room.shape()), room.view());
        return room;
      };
      Tensor want = made(), y = made(), without_bits = made();
      Tensor want_bits = bytes(), bits = bytes();
      linear(t.ctx(), x.view(), w, bias.view(), {&term, 1}, &packing, want.view());
      relu_dropout(t.ctx(), want.view(), dropout, &packing, want.view(), want_bits.view());
      linear(t.ctx(), x.view(), w, bias.view(), {&term, 1}, &packing, y.view(),
             {.relu = true, .dropout = dropout, .bits = bits.view()});
      expect_same_bits(y.view(), want.view());
      expect_same_bits(bits.view(), want_bits.view());
      linear(t.ctx(), x.view(), w, bias.view(), {&term, 1}, &packing, without_bits.view(),
             {.relu = true, .dropout = dropout});
      expect_same_bits(without_bits.view(), want.view());
      EXPECT_EQ(t.ctx().scratch().used(), 0);
    }
}

TEST_P(LinearTest, ReluInTheEpilogueIsReluDropout) {
  check_relu_epilogues(*this, [&](const Tensor& w) { return packed(w); });
}

TEST_P(LinearTest, AnEpilogueIsGeluThenTheResidual) {
  const Tensor x = tensor({2, 2}, {1, 0, -1, 2});
  const Tensor w = tensor({2, 2}, {1, 0, 0, 3});
  const Tensor bias = tensor({2}, {0, -3});
  const Tensor residual = tensor({2, 2}, {10, 20, 30, 40});
  Tensor y = poisoned({2, 2}), pre = poisoned({2, 2});
  linear(ctx(), x.view(), packed(w), bias.view(), {}, nullptr, y.view(),
         {.gelu = true, .pre = pre.view(), .residual = residual.view()});
  expect_close(pre.view(), {1, -3, -1, 3});
  expect_close(y.view(), {10 + 0.8413447460685429, 20 - 0.00404969409489031,
                          30 - 0.15865525393145707, 40 + 2.9959503059051097});
  linear(ctx(), x.view(), packed(w), bias.view(), {}, nullptr, y.view(),
         {.residual = residual.view()});
  expect_close(y.view(), {11, 17, 29, 43});
}

TEST_P(LinearTest, EpiloguesAreThePlainOperations) {
  check_epilogues(*this, [&](const Tensor& w) { return packed(w); });
}

// Large tiles and small ones.
TEST_P(LinearTest, TheSizeOfTilesDoesNotShowInAnEpilogue) {
  if (chooses_by_rows(GetParam())) GTEST_SKIP() << "cuBLASLt chooses by the number of rows";
  const int64_t rows = 257, wide = 5504, narrow = 8;
  const Tensor x = random({rows, narrow}), w = random({wide, narrow}),
               residual = random({rows, wide});
  const PackedWeight forward = packed(w);
  Tensor y = poisoned({rows, wide}), pre = poisoned({rows, wide});
  linear(ctx(), x.view(), forward, {}, {}, nullptr, y.view(),
         {.gelu = true, .pre = pre.view(), .residual = residual.view()});
  for (int64_t begin : {int64_t{0}, rows - 3}) {
    Tensor some = poisoned({3, wide}), some_pre = poisoned({3, wide});
    linear(
        ctx(), x.view().rows(begin, begin + 3), forward, {}, {}, nullptr, some.view(),
        {.gelu = true, .pre = some_pre.view(), .residual = residual.view().rows(begin, begin + 3)});
    expect_same_bits(some.view(), std::as_const(y).view().rows(begin, begin + 3));
    expect_same_bits(some_pre.view(), std::as_const(pre).view().rows(begin, begin + 3));
  }
}

// Through the pre-activation that was kept, and by recomputing it.
TEST_P(LinearTest, GradientsThroughAnEpilogueMatchFiniteDifferences) {
  if (dtype() != DType::f64) GTEST_SKIP() << "finite differences are taken in f64";
  const PackedCells cells({3, 0, 2}, {7, 8, 100});
  const Packing packing = cells.packing();
  Tensor x = random({5, 6}), w = random({4, 6}), bias = random({4}), a = random({2, 6}),
         b = random({4, 2}), residual = random({5, 4});
  const Tensor dy = random({5, 4});
  const auto term = [&] { return LowRank{a.view(), b.view(), 0.5, {.p = 0.3f, .site = 1030}}; };
  Tensor pre = poisoned({5, 4});
  const auto loss = [&] {
    Tensor y = poisoned({5, 4});
    const LowRank t = term();
    linear(ctx(), x.view(), packed(w), bias.view(), {&t, 1}, &packing, y.view(),
           {.gelu = true, .pre = pre.view(), .residual = std::as_const(residual).view()});
    return dot(y.view(), dy.view());
  };
  loss();
  const LowRank t = term();
  Tensor again = poisoned({5, 4});
  linear(ctx(), x.view(), packed(w), bias.view(), {&t, 1}, &packing, again.view());
  expect_same_bits(again.view(), pre.view());
  Tensor dz = poisoned({5, 4}), dx = poisoned({5, 6});
  activation_backward(ctx(), Activation::gelu, again.view(), dy.view(), dz.view());
  linear_backward_input(ctx(), dz.view(), packed(w, PackedFor::backward_input), {&t, 1}, &packing,
                        false, dx.view());
  Tensor da = zeros({2, 6}), db = zeros({4, 2}), dw = zeros({4, 6}), dbias = zeros({4});
  low_rank_backward(ctx(), x.view(), dz.view(), t, packing, da.view(), db.view());
  linear_backward_weight(ctx(), x.view(), dz.view(), packing, dw.view(), dbias.view());
  expect_gradient(x, loss, dx.view());
  expect_gradient(w, loss, dw.view());
  expect_gradient(bias, loss, dbias.view());
  expect_gradient(a, loss, da.view());
  expect_gradient(b, loss, db.view());
  expect_gradient(residual, loss, dy.view());
}

TEST_P(LinearTest, ErrorsOfEpiloguesNameWhatTheyWanted) {
  const Tensor w = random({4, 6}), x = random({2, 6}), residual = random({2, 3});
  Tensor y = zeros({2, 4}), pre = zeros({3, 4});
  const auto run = [&](const LinearEpilogue& e) {
    linear(ctx(), x.view(), packed(w), {}, {}, nullptr, y.view(), e);
  };
  expect_error("linear: residual must be [2, 4], got [2, 3]",
               [&] { run({.residual = residual.view()}); });
  expect_error("linear: pre must be [2, 4], got [3, 4]",
               [&] { run({.gelu = true, .pre = pre.view()}); });
  expect_error("linear: without gelu nothing is kept for it", [&] { run({.pre = y.view()}); });
  expect_error("linear: pre must not be y", [&] { run({.gelu = true, .pre = y.view()}); });
  expect_error("linear: neither gelu nor a residual go with relu",
               [&] { run({.gelu = true, .relu = true}); });
  expect_error("linear: bits and dropout are those of relu",
               [&] { run({.dropout = {.p = 0.1f}}); });
  Tensor bits(Shape{2, 2}, DType::u8, test_device());
  expect_error("linear: bits must be [2, 1], got [2, 2]",
               [&] { run({.relu = true, .bits = bits.view()}); });
}

// What 16-bit rows are multiplied by: the tensor cores of compute capability 8.0 and, in f16,
// of 7.5.
std::vector<OpMode> tensor_core_modes() {
  std::vector<OpMode> modes = {{Device::cpu(), false, DType::bf16, "cuda_bf16"},
                               {Device::cpu(), false, DType::f16, "cuda_f16"},
                               {Device::cpu(), false, DType::f16, "cuda_f16_turing"}};
  for (OpMode& mode : modes) {
    const bool turing = mode.name.ends_with("turing");
    if (cuda_device_count() == 0) {
      mode.missing = "this machine has no CUDA device";
      continue;
    }
    mode.device = Device::cuda();
    if constexpr (kBuiltWithCuda && !kCudaEmulated) {
      const bool old = gpu::compute_capability(mode.device) < 80;
      if (old != turing) mode.missing = "this device has other tensor cores";
    }
  }
  return modes;
}

class LinearTensorCoreTest : public OpTest {
 public:
  LinearTensorCoreTest() { choose(GetParam().name.ends_with("turing") ? 75 : 86); }
  ~LinearTensorCoreTest() override { choose(86); }
  static void choose([[maybe_unused]] int capability) {
    if constexpr (kCudaEmulated) gpu::emulator_options().become(capability);
  }

  PackedWeight packed(const Tensor& w, PackedFor use = PackedFor::forward) {
    PackedWeight p;
    p.pack(ctx(), w.view(), use, dtype());
    return p;
  }
  Tensor f32(Shape shape) { return tensor_of(shape, DType::f32, values_of(random(shape).view())); }
  Tensor f32_zeros(Shape shape) {
    return tensor_of(shape, DType::f32, std::vector<double>(static_cast<size_t>(shape.numel())));
  }

  // `got` is a sum of k products of factors that were rounded to the type of the rows.
  void expect_rounded(ConstTensorView got, ConstTensorView want, int64_t k) {
    const std::vector<double> g = values_of(got), w = values_of(want);
    ASSERT_EQ(g.size(), w.size());
    double largest = 0;
    for (double v : w) largest = std::max(largest, std::abs(v));
    const Tolerance t = tolerance(dtype(), k);
    for (size_t i = 0; i < g.size(); ++i)
      ASSERT_TRUE(std::abs(g[i] - w[i]) <= t.atol_of_largest * largest + t.rtol * std::abs(w[i]))
          << "element " << i << " of " << got.shape() << ": got " << g[i] << ", want " << w[i];
  }
};
INSTANTIATE_TEST_SUITE_P(Modes, LinearTensorCoreTest, ::testing::ValuesIn(tensor_core_modes()),
                         [](const auto& mode) { return mode.param.name; });

std::vector<OpMode> library_tensor_core_modes() {
  std::vector<OpMode> modes = tensor_core_modes();
  for (OpMode& mode : modes) mode = by_cublaslt(mode);
  return modes;
}
INSTANTIATE_TEST_SUITE_P(Library, LinearTensorCoreTest,
                         ::testing::ValuesIn(library_tensor_core_modes()),
                         [](const auto& mode) { return mode.param.name; });

struct LinearSizes {
  int64_t rows, in, out, rank;
};

// Rows of 7 do not begin at 16-byte boundaries, so that the weight is copied whatever its type.
TEST_P(LinearTensorCoreTest, AWeightOfAnyTypeTakesTheTypeOfTheProduct) {
  constexpr DType kTypes[] = {DType::f32, DType::bf16, DType::f16};
  for (const DType stored : kTypes)
    for (const DType product : kTypes) {
      SCOPED_TRACE(cat(stored, " as ", product));
      const Tensor weight = tensor_of({5, 7}, stored, values_of(random({5, 7}).view()));
      PackedWeight packed;
      packed.pack(ctx(), weight.view(), PackedFor::forward, product);
      const std::vector<double> rounded =
          values_of(tensor_of({5, 7}, product, values_of(weight.view())).view());
      const std::vector<double> got = values_of(packed.matrix());
      const auto columns = static_cast<size_t>(packed.matrix().dim(1));
      for (size_t i = 0; i < got.size(); ++i)
        EXPECT_EQ(got[i], i % columns < 7 ? rounded[i / columns * 7 + i % columns] : 0) << i;
    }
}

// Everything a step computes, against the definition in f64 of the same rounded numbers.
TEST_P(LinearTensorCoreTest, AgreesWithTheDefinitionInF64) {
  Context definition = reference_context();
  for (const LinearSizes s : {LinearSizes{1, 1, 1, 1},
                              {2, 7, 8, 2},
                              {3, 8, 33, 4},
                              {31, 32, 24, 8},
                              {33, 33, 31, 3},
                              {64, 64, 64, 16},
                              {65, 72, 130, 17},
                              {140, 257, 40, 33},
                              {257, 40, 65, 70},
                              {70, 512, 136, 9},
                              {5, 521, 7, 8}})
    for (float p : {0.0f, 0.25f}) {
      SCOPED_TRACE(
          cat("rows ", s.rows, ", in ", s.in, ", out ", s.out, ", rank ", s.rank, ", p ", p));
      const PackedCells cells = awkward_cells(s.rows);
      const Packing packing = cells.packing();
      const Packing host = Packing::over(cells.offsets, cells.ids);
      const Tensor x = random({s.rows, s.in}), dy = random({s.rows, s.out}),
                   w = random({s.out, s.in}), bias = random({s.out}),
                   a = random({s.rank, s.in}, 1 / std::sqrt(static_cast<double>(s.in))),
                   b = random({s.out, s.rank});
      const Tensor x64 = in_f64(x), dy64 = in_f64(dy), w64 = in_f64(w), bias64 = in_f64(bias),
                   a64 = in_f64(a), b64 = in_f64(b);
      const Dropout dropout{.p = p, .site = 1030};
      const LowRank term{a.view(), b.view(), 0.5, dropout};
      const LowRank want_term{a64.view(), b64.view(), 0.5, dropout};
      PackedWeight plain;

      Tensor y = poisoned({s.rows, s.out}), y_want(Shape{s.rows, s.out}, DType::f64);
      linear(ctx(), x.view(), packed(w), bias.view(), {&term, 1}, &packing, y.view());
      plain.pack(definition, w64.view(), PackedFor::forward, DType::f64);
      linear(definition, x64.view(), plain, bias64.view(), {&want_term, 1}, &host, y_want.view());
      expect_rounded(y.view(), y_want.view(), s.in + s.rank);

      Tensor dx = random({s.rows, s.in}), dx_want = in_f64(dx);
      linear_backward_input(ctx(), dy.view(), packed(w, PackedFor::backward_input), {&term, 1},
                            &packing, true, dx.view());
      plain.pack(definition, w64.view(), PackedFor::backward_input, DType::f64);
      linear_backward_input(definition, dy64.view(), plain, {&want_term, 1}, &host, true,
                            dx_want.view());
      expect_rounded(dx.view(), dx_want.view(), s.out + s.rank);

      Tensor da = f32_zeros({s.rank, s.in}), db = f32_zeros({s.out, s.rank});
      Tensor da_want(Shape{s.rank, s.in}, DType::f64), db_want(Shape{s.out, s.rank}, DType::f64);
      low_rank_backward(ctx(), x.view(), dy.view(), term, packing, da.view(), db.view());
      low_rank_backward(definition, x64.view(), dy64.view(), want_term, host, da_want.view(),
                        db_want.view());
      expect_rounded(da.view(), da_want.view(), s.rows + s.out);
      expect_rounded(db.view(), db_want.view(), s.rows + s.in);

      Tensor dw = f32_zeros({s.out, s.in}), dbias = f32_zeros({s.out});
      Tensor dw_want(Shape{s.out, s.in}, DType::f64), dbias_want(Shape{s.out}, DType::f64);
      linear_backward_weight(ctx(), x.view(), dy.view(), packing, dw.view(), dbias.view());
      linear_backward_weight(definition, x64.view(), dy64.view(), host, dw_want.view(),
                             dbias_want.view());
      // Nothing was rounded on the way but sums in f32.
      expect_close(dw.view(), values_of(dw_want.view()), s.rows);
      expect_close(dbias.view(), values_of(dbias_want.view()), s.rows);
    }
}

TEST_P(LinearTensorCoreTest, ZeroBLeavesTheFrozenResultBitForBit) {
  for (int64_t in : {40, 257})
    for (float p : {0.0f, 0.3f}) {
      const int64_t rows = 65;
      const PackedCells cells = awkward_cells(rows);
      const Packing packing = cells.packing();
      const Tensor x = random({rows, in}), w = random({24, in}), bias = f32({24});
      const Tensor a = f32({4, in}), b = f32_zeros({24, 4});
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

TEST_P(LinearTensorCoreTest, TheSizeOfTilesDoesNotShow) {
  if (chooses_by_rows(GetParam())) GTEST_SKIP() << "cuBLASLt chooses by the number of rows";
  const int64_t rows = 257, wide = 5504, narrow = 40;
  const PackedCells cells({257}, {4});
  const Packing packing = cells.packing();
  const Tensor x = random({rows, narrow}), w = random({wide, narrow}), v = random({narrow, wide}),
               a = random({8, narrow}), b = random({wide, 8});
  const LowRank term{a.view(), b.view(), 0.5, {}};
  const PackedWeight forward = packed(w), back = packed(v, PackedFor::backward_input);
  Tensor y = poisoned({rows, wide}), dx = poisoned({rows, wide});
  linear(ctx(), x.view(), forward, {}, {&term, 1}, &packing, y.view());
  linear_backward_input(ctx(), x.view(), back, {}, nullptr, false, dx.view());
  for (int64_t begin : {int64_t{0}, int64_t{130}, rows - 3}) {
    Tensor some = poisoned({3, wide});
    linear(ctx(), x.view().rows(begin, begin + 3), forward, {}, {&term, 1}, nullptr, some.view());
    expect_same_bits(some.view(), std::as_const(y).view().rows(begin, begin + 3));
    linear_backward_input(ctx(), x.view().rows(begin, begin + 3), back, {}, nullptr, false,
                          some.view());
    expect_same_bits(some.view(), std::as_const(dx).view().rows(begin, begin + 3));
  }
}

// The one kernel of product and low-rank terms, with panels of 64 and of 128 rows, against the two
// kernels: several terms with dropouts of their own, every epilogue, results of both types. Its
// blocks, warps and lanes run in other orders, and ldmatrix meets no bank twice.
TEST_P(LinearTensorCoreTest, APanelHasTheBitsOfTheSplitProduct) {
  if (GetParam().name.ends_with("turing")) GTEST_SKIP() << "there are panels from 8.0 on";
  if (GetParam().linear != LinearBackend::own) GTEST_SKIP() << "the library has no panels";
  if constexpr (kBuiltWithCuda) {
    struct Sizes {
      int64_t rows, in, out;
      std::vector<int64_t> ranks;
    };
    const Sizes all[] = {{0, 40, 8, {4}},      {1, 1, 1, {1}},
                         {3, 40, 33, {4}},     {64, 64, 128, {8}},
                         {65, 72, 130, {17}},  {130, 257, 264, {8, 0, 3, 20}},
                         {129, 96, 392, {64}}, {70, 512, 136, {8, 8}}};
    struct Ending {
      bool wide, gelu, relu;
    };
    const Ending endings[] = {{true, false, false},
                              {false, true, false},
                              {false, false, true},
                              {true, false, true},
                              {false, false, false}};
    struct Results {
      Tensor y, pre, bits;
    };
    // Every ending for one shape, one for the others.
    const size_t every = 4;
    for (size_t shape = 0; shape < std::size(all); ++shape)
      for (const float p : {0.0f, 0.25f}) {
        const Sizes& s = all[shape];
        const PackedCells cells = awkward_cells(s.rows);
        const Packing packing = cells.packing();
        const Tensor x = random({s.rows, s.in}), w = random({s.out, s.in}), bias = random({s.out}),
                     residual = random({s.rows, s.out});
        const PackedWeight weight = packed(w);
        std::vector<Tensor> factors;
        std::vector<LowRank> terms;
        int64_t rank = 0;
        for (const int64_t r : s.ranks) {
          const ConstTensorView a = factors.emplace_back(random({r, s.in})).view();
          const ConstTensorView b = factors.emplace_back(random({s.out, r})).view();
          const auto t = static_cast<uint32_t>(terms.size());
          terms.push_back({a, b, 0.5 - t, {.p = p / static_cast<float>(t + 1), .site = 1030 + t}});
          rank += (r + 15) / 16 * 16;
        }
        for (size_t i = 0; i < std::size(endings); ++i) {
          if (shape != every && i != shape % std::size(endings)) continue;
          const Ending& ending = endings[i];
          const DType type = ending.wide ? DType::f32 : dtype();
          const auto run = [&](cuda::LowRankPath path) {
            const int64_t per_row = (s.out + 7) / 8;
            Results r{poisoned({s.rows, s.out}, type), poisoned({s.rows, s.out}, type),
                      bytes(std::vector<uint8_t>(static_cast<size_t>(s.rows * per_row), 77))};
            LinearEpilogue e;
            if (ending.gelu) e = {.gelu = true, .pre = r.pre.view(), .residual = residual.view()};
            if (ending.relu)
              e = {.relu = true,
                   .dropout = {.p = p, .site = 1040},
                   .bits = r.bits.view().reshape({s.rows, per_row})};
            cuda::linear(ctx(), x.view(), weight, bias.view(), terms, &packing, r.y.view(), e,
                         path);
            EXPECT_EQ(ctx().scratch().used(), 0);
            return r;
          };
          const Results want = run(cuda::LowRankPath::split);
          for (const int panel : {64, 128}) {
            SCOPED_TRACE(cat("panel ", panel, ", rows ", s.rows, ", in ", s.in, ", out ", s.out,
                             ", terms ", terms.size(), ", p ", p, ", y ", type, ", gelu ",
                             ending.gelu, ", relu ", ending.relu));
            if constexpr (kCudaEmulated) {
              gpu::EmulatorOptions& options = gpu::emulator_options();
              options.max_shared = 163 * 1024;
              options.order = panel == 64 ? gpu::Order::reverse : gpu::Order::random;
            }
            const int64_t shared = gpu::shared_memory_limit(ctx().device());
            if (cuda::panel_rows(1 << 20, s.in, rank, dtype(), 80, shared) < panel) continue;
            const Results got =
                run(panel == 64 ? cuda::LowRankPath::panel64 : cuda::LowRankPath::panel128);
            if constexpr (kCudaEmulated) {
              EXPECT_EQ(gpu::emulator_options().last_report.extra_phases(), 0);
              gpu::emulator_options().order = gpu::Order::forward;
            }
            expect_same_bits(got.y.view(), want.y.view());
            expect_same_bits(got.pre.view(), want.pre.view());
            expect_same_bits(got.bits.view(), want.bits.view());
          }
        }
      }
  }
}

// The widest rows that fit 99 KiB, and one column more.
TEST_P(LinearTensorCoreTest, APanelIsTakenWhereItFits) {
  if constexpr (!kCudaEmulated) {
    GTEST_SKIP() << "only the emulated device says what ran";
  } else {
    const bool panels =
        !GetParam().name.ends_with("turing") && GetParam().linear == LinearBackend::own;
    const auto ran_a_panel = [&](int64_t in, int64_t rank) {
      const Tensor x = random({5, in}), a = random({rank, in}), b = random({9, rank});
      const LowRank term{a.view(), b.view(), 1, {}};
      Tensor y = poisoned({5, 9});
      linear(ctx(), x.view(), packed(random({9, in})), {}, {&term, 1}, nullptr, y.view());
      const auto& sites = gpu::emulator_options().last_report.ldmatrix;
      return std::any_of(sites.begin(), sites.end(), [](const auto& site) {
        return site.site.find("linear_panel.cuh") != std::string::npos;
      });
    };
    EXPECT_EQ(ran_a_panel(576, 16), panels);
    EXPECT_FALSE(ran_a_panel(577, 16));
    EXPECT_FALSE(ran_a_panel(576, 17));
    EXPECT_EQ(ran_a_panel(512, 64), panels);
    EXPECT_FALSE(ran_a_panel(40, 65));
  }
}

TEST_P(LinearTensorCoreTest, EpiloguesAreThePlainOperations) {
  check_epilogues(*this, [&](const Tensor& w) { return packed(w); });
}

TEST_P(LinearTensorCoreTest, ReluInTheEpilogueIsReluDropout) {
  check_relu_epilogues(*this, [&](const Tensor& w) { return packed(w); });
  check_relu_epilogues(
      *this, [&](const Tensor& w) { return packed(w); }, true);
}

TEST_P(LinearTensorCoreTest, ABiasMayBeF32) {
  const Tensor x = random({33, 40}), w = random({31, 40}), bias = random({31});
  const Tensor wide = tensor_of({31}, DType::f32, values_of(bias.view()));
  Tensor y = poisoned({33, 31}), want = poisoned({33, 31});
  linear(ctx(), x.view(), packed(w), bias.view(), {}, nullptr, want.view());
  linear(ctx(), x.view(), packed(w), wide.view(), {}, nullptr, y.view());
  expect_rounded(y.view(), in_f64(want).view(), 1);
}

// Nothing but the result is rounded to 16 bits when there is no gelu.
TEST_P(LinearTensorCoreTest, AResidualIsAddedBeforeTheResultIsRounded) {
  const Tensor x = tensor({1, 8}, {1, 1, 1, 1, 1, 1, 1, 1});
  const Tensor w = tensor({1, 8}, {256, 1, 0, 0, 0, 0, 0, 0.5});
  const Tensor residual = tensor({1, 1}, {-256});
  Tensor y = poisoned({1, 1});
  linear(ctx(), x.view(), packed(w), {}, {}, nullptr, y.view(), {.residual = residual.view()});
  EXPECT_EQ(values_of(y.view())[0], 1.5);  // 257.5 is no bf16, and 258 - 256 is 2
}

// Cells together and alone: results and the sums of all gradients.
TEST_P(LinearTensorCoreTest, ABatchEqualsItsCellsOneAfterAnother) {
  if (chooses_by_rows(GetParam())) GTEST_SKIP() << "cuBLASLt chooses by the number of rows";
  const PackedCells both({50, 0, 600, 87}, {70, 71, 72, 73});
  const Packing packing = both.packing();
  const int64_t rows = both.rows(), in = 48, out = 40, rank = 4;
  const Tensor x = random({rows, in}), dy = random({rows, out}), w = random({out, in}),
               a = f32({rank, in}), b = f32({out, rank});
  const LowRank term{a.view(), b.view(), 1.5, {.p = 0.3f, .site = 1030}};
  const PackedWeight forward = packed(w), back = packed(w, PackedFor::backward_input);
  Tensor y = poisoned({rows, out}), dx = poisoned({rows, in});
  linear(ctx(), x.view(), forward, {}, {&term, 1}, &packing, y.view());
  linear_backward_input(ctx(), dy.view(), back, {&term, 1}, &packing, false, dx.view());
  Tensor da = f32({rank, in}), db = f32({out, rank}), dw = f32({out, in}), dbias = f32({out});
  Tensor da1 = da.clone(), db1 = db.clone(), dw1 = dw.clone(), dbias1 = dbias.clone();
  low_rank_backward(ctx(), x.view(), dy.view(), term, packing, da.view(), db.view());
  linear_backward_weight(ctx(), x.view(), dy.view(), packing, dw.view(), dbias.view());
  for (size_t cell = 0; cell < both.ids.size(); ++cell) {
    const int64_t begin = both.offsets[cell], end = both.offsets[cell + 1];
    const PackedCells one({static_cast<int32_t>(end - begin)}, {both.ids[cell]});
    const Packing own = one.packing();
    const ConstTensorView x1 = x.view().rows(begin, end), dy1 = dy.view().rows(begin, end);
    Tensor y1 = poisoned({end - begin, out}), dx1 = poisoned({end - begin, in});
    linear(ctx(), x1, forward, {}, {&term, 1}, &own, y1.view());
    linear_backward_input(ctx(), dy1, back, {&term, 1}, &own, false, dx1.view());
    expect_same_bits(y1.view(), y.view().rows(begin, end));
    expect_same_bits(dx1.view(), dx.view().rows(begin, end));
    low_rank_backward(ctx(), x1, dy1, term, own, da1.view(), db1.view());
    linear_backward_weight(ctx(), x1, dy1, own, dw1.view(), dbias1.view());
  }
  expect_same_bits(da1.view(), da.view());
  expect_same_bits(db1.view(), db.view());
  expect_same_bits(dw1.view(), dw.view());
  expect_same_bits(dbias1.view(), dbias.view());
}

// f32 rows beside 16-bit weights, and several terms of several ranks.
TEST_P(LinearTensorCoreTest, F32RowsAreRoundedToTheTypeOfTheProduct) {
  Context definition = reference_context();
  const int64_t rows = 70, in = 60, out = 33;
  const Tensor x = f32({rows, in}), w = f32({out, in}), bias = f32({out}), a1 = f32({2, in}),
               b1 = f32({out, 2}), a2 = f32({20, in}), b2 = f32({out, 20});
  const Tensor x64 = in_f64(x), w64 = in_f64(w), bias64 = in_f64(bias), a164 = in_f64(a1),
               b164 = in_f64(b1), a264 = in_f64(a2), b264 = in_f64(b2);
  const LowRank terms[] = {{a1.view(), b1.view(), 0.5, {}}, {a2.view(), b2.view(), -0.25, {}}};
  const LowRank wanted[] = {{a164.view(), b164.view(), 0.5, {}},
                            {a264.view(), b264.view(), -0.25, {}}};
  Tensor y = tensor_of({rows, out}, DType::f32, std::vector<double>(rows * out, NAN));
  Tensor want(Shape{rows, out}, DType::f64);
  linear(ctx(), x.view(), packed(w), bias.view(), terms, nullptr, y.view());
  PackedWeight plain;
  plain.pack(definition, w64.view(), PackedFor::forward, DType::f64);
  linear(definition, x64.view(), plain, bias64.view(), wanted, nullptr, want.view());
  expect_rounded(y.view(), want.view(), in);
}

// Sums may stay in f32: rounded afterwards they are the result that is rounded at once.
TEST_P(LinearTensorCoreTest, ResultsOfSixteenBitRowsMayBeF32) {
  for (const int64_t out : {72, 33}) {
    const int64_t rows = 70, in = 40;
    const Tensor x = random({rows, in}), dy = random({rows, out}), w = random({out, in}),
                 bias = f32({out});
    Tensor y = poisoned({rows, out}), wide(Shape{rows, out}, DType::f32, test_device());
    // The library's 16-bit result is rounded once before an f32 bias is added.
    const bool own = GetParam().linear == LinearBackend::own;
    const ConstTensorView added = own ? bias.view() : ConstTensorView();
    linear(ctx(), x.view(), packed(w), added, {}, nullptr, y.view());
    linear(ctx(), x.view(), packed(w), added, {}, nullptr, wide.view());
    expect_same_bits(tensor_of({rows, out}, dtype(), values_of(wide.view())).view(), y.view());
    const PackedWeight back = packed(w, PackedFor::backward_input);
    Tensor dx = poisoned({rows, in}), wide_dx(Shape{rows, in}, DType::f32, test_device());
    linear_backward_input(ctx(), dy.view(), back, {}, nullptr, false, dx.view());
    linear_backward_input(ctx(), dy.view(), back, {}, nullptr, false, wide_dx.view());
    expect_same_bits(tensor_of({rows, in}, dtype(), values_of(wide_dx.view())).view(), dx.view());
  }
}

TEST_P(LinearTensorCoreTest, WarpsAndBlocksMayRunInAnyOrder) {
  if constexpr (!kCudaEmulated) {
    GTEST_SKIP() << "only the emulated device runs in a chosen order";
  } else {
    const PackedCells cells = awkward_cells(150);
    const Packing packing = cells.packing();
    const int64_t rows = 150, in = 130, out = 72, rank = 20;
    const Tensor x = random({rows, in}), dy = random({rows, out}), w = random({out, in}),
                 bias = random({out}), a = f32({rank, in}), b = f32({out, rank});
    const LowRank term{a.view(), b.view(), 0.5, {.p = 0.2f, .site = 1030}};
    const PackedWeight forward = packed(w), back = packed(w, PackedFor::backward_input);
    std::vector<Tensor> want;
    for (const gpu::Order order : {gpu::Order::forward, gpu::Order::reverse, gpu::Order::random}) {
      gpu::emulator_options().order = order;
      std::vector<Tensor> got;
      got.push_back(poisoned({rows, out}));
      linear(ctx(), x.view(), forward, bias.view(), {&term, 1}, &packing, got.back().view());
      EXPECT_EQ(gpu::emulator_options().last_report.extra_phases(), 0);
      got.push_back(poisoned({rows, in}));
      linear_backward_input(ctx(), dy.view(), back, {&term, 1}, &packing, false, got.back().view());
      EXPECT_EQ(gpu::emulator_options().last_report.extra_phases(), 0);
      Tensor da = f32_zeros({rank, in}), db = f32_zeros({out, rank}), dw = f32_zeros({out, in});
      low_rank_backward(ctx(), x.view(), dy.view(), term, packing, da.view(), db.view());
      linear_backward_weight(ctx(), x.view(), dy.view(), packing, dw.view(), {});
      for (Tensor* t : {&da, &db, &dw}) got.push_back(std::move(*t));
      if (want.empty()) want = std::move(got);
      for (size_t i = 0; i < got.size(); ++i) expect_same_bits(got[i].view(), want[i].view());
    }
    gpu::emulator_options().order = gpu::Order::forward;
  }
}

TEST_P(LinearTensorCoreTest, ErrorsNameTheTypesTheyWanted) {
  const Tensor x = random({2, 8}), w = f32({4, 8});
  Tensor y = poisoned({2, 4});
  PackedWeight p;
  p.pack(ctx(), w.view(), PackedFor::forward, DType::f32);
  expect_error(cat("linear: rows are ", dtype(), ", the weight is packed as f32"),
               [&] { linear(ctx(), x.view(), p, {}, {}, nullptr, y.view()); });
  const PackedCells cells({2}, {1});
  const Packing packing = cells.packing();
  Tensor dbias = zeros({8});
  expect_error(cat("gradients beside ", dtype(), " rows are f32, got ", dtype()), [&] {
    linear_backward_weight(ctx(), x.view(), x.view(), packing, {}, dbias.view());
  });
  const Tensor a = f32({1, 8}), b = f32({4, 1});
  const std::vector<LowRank> nine(9, LowRank{a.view(), b.view(), 1, {}});
  expect_error("at most 8 low-rank terms fit a launch, got 9",
               [&] { linear(ctx(), x.view(), packed(w), {}, nine, nullptr, y.view()); });
  if (kCudaEmulated && dtype() == DType::bf16) {
    choose(75);
    expect_error("compute capability 7.5 and does not multiply bf16",
                 [&] { linear(ctx(), x.view(), packed(w), {}, {}, nullptr, y.view()); });
  }
}

TEST(PanelRowsTest, AreWhatTypeDeviceAndSharedMemoryAllow) {
  if constexpr (kBuiltWithCuda) {
    constexpr int64_t kMany = 76800, kOf86 = 99 << 10, kOf80 = 163 << 10, kOf90 = 227 << 10;
    EXPECT_EQ(cuda::panel_rows(kMany, 512, 16, DType::bf16, 86, kOf86), 64);
    EXPECT_EQ(cuda::panel_rows(kMany, 256, 16, DType::f16, 86, kOf86), 128);
    EXPECT_EQ(cuda::panel_rows(kMany, 512, 16, DType::bf16, 80, kOf80), 128);
    EXPECT_EQ(cuda::panel_rows(kMany, 512, 48, DType::bf16, 80, kOf80), 64);
    EXPECT_EQ(cuda::panel_rows(600, 512, 16, DType::bf16, 80, kOf80), 64);
    EXPECT_EQ(cuda::panel_rows(kMany, 1088, 16, DType::bf16, 80, kOf80), 64);
    EXPECT_EQ(cuda::panel_rows(kMany, 1089, 16, DType::bf16, 80, kOf80), 0);
    EXPECT_EQ(cuda::panel_rows(kMany, 1600, 16, DType::f16, 90, kOf90), 64);
    EXPECT_EQ(cuda::panel_rows(kMany, 1601, 16, DType::f16, 90, kOf90), 0);
    EXPECT_EQ(cuda::panel_rows(kMany, 512, 64, DType::f16, 89, kOf86), 64);
    EXPECT_EQ(cuda::panel_rows(kMany, 64, 80, DType::f16, 89, kOf86), 0);
    EXPECT_EQ(cuda::panel_rows(kMany, 64, 16, DType::f16, 75, 64 << 10), 0);
    EXPECT_EQ(cuda::panel_rows(kMany, 64, 16, DType::f32, 86, kOf86), 0);
    EXPECT_EQ(cuda::panel_rows(kMany, 512, 0, DType::bf16, 86, kOf86), 0);
    EXPECT_EQ(cuda::panel_rows(kMany, 0, 16, DType::bf16, 86, kOf86), 0);
  }
}

// How linear() uses the library: by what the one for tests has counted.
class LinearByLibrary : public ::testing::Test {
 protected:
  void SetUp() override {
    if (test_library().empty()) GTEST_SKIP() << "only with the emulated device";
    ASSERT_EQ(why_no_cublaslt(), "");
    handle_ = dlopen(test_library().c_str(), RTLD_NOW | RTLD_NOLOAD);
    ASSERT_NE(handle_, nullptr);
  }
  void TearDown() override {
    if (handle_ != nullptr) refuse(0);
  }
  int64_t queries() const { return call<int64_t()>("scgraft_test_queries")(); }
  int64_t products() const { return call<int64_t()>("scgraft_test_products")(); }
  int64_t live() const { return call<int64_t()>("scgraft_test_live")(); }
  void refuse(int status) const { call<void(int)>("scgraft_test_refuse")(status); }
  template <class F>
  F* call(const char* name) const {
    return reinterpret_cast<F*>(dlsym(handle_, name));
  }
  static Tensor ones(Shape shape) {
    return Tensor(tensor_of(shape, DType::f32,
                            std::vector<double>(static_cast<size_t>(shape.numel()), 1)))
        .to(Device::cuda());
  }

  void* handle_ = nullptr;
};

TEST_F(LinearByLibrary, IsAskedOncePerShapeAndLeavesNothingBehind) {
  const int64_t live_before = live();
  {
    Context ctx(Device::cuda(), {.linear = LinearBackend::cublaslt});
    const Tensor w = ones({3, 8}), bias = ones({3});
    PackedWeight forward, back;
    forward.pack(ctx, w.view(), PackedFor::forward, DType::f32);
    back.pack(ctx, w.view(), PackedFor::backward_input, DType::f32);
    const int64_t asked = queries(), made = products();
    for (int step = 0; step < 3; ++step)
      for (int64_t rows : {0, 2, 5}) {
        const Tensor x = ones({rows, 8});
        Tensor y({rows, 3}, DType::f32, Device::cuda()), dx({rows, 8}, DType::f32, Device::cuda());
        linear(ctx, x.view(), forward, bias.view(), {}, nullptr, y.view());
        linear_backward_input(ctx, y.view(), back, {}, nullptr, false, dx.view());
        for (double v : values_of(on_host(y.view()).view())) ASSERT_EQ(v, 9);
        for (double v : values_of(on_host(dx.view()).view())) ASSERT_EQ(v, 27);
      }
    EXPECT_EQ(queries() - asked, 4);   // two numbers of rows, two directions
    EXPECT_EQ(products() - made, 12);  // three times
    EXPECT_EQ(ctx.scratch().used(), 0);
    EXPECT_GE(ctx.scratch().peak(), gpu::LibraryProducts::kWorkspaceBytes);
    EXPECT_GT(live(), live_before);

    Context own(Device::cuda());
    Tensor y({2, 3}, DType::f32, Device::cuda());
    linear(own, ones({2, 8}).view(), forward, {}, {}, nullptr, y.view());
    EXPECT_EQ(products() - made, 12);
  }
  EXPECT_EQ(live(), live_before);
}

TEST_F(LinearByLibrary, ARefusalNamesTheProductAndTheWayOut) {
  Context ctx(Device::cuda(), {.linear = LinearBackend::cublaslt});
  const Tensor w = ones({3, 8}), x = ones({2, 8});
  PackedWeight forward;
  forward.pack(ctx, w.view(), PackedFor::forward, DType::f32);
  Tensor y({2, 3}, DType::f32, Device::cuda());
  refuse(15);
  try {
    linear(ctx, x.view(), forward, {}, {}, nullptr, y.view());
    FAIL() << "nothing was thrown";
  } catch (const DeviceError& error) {
    EXPECT_STREQ(error.what(),
                 "linear: cuBLASLt refuses a product of [2, 8] by the transpose of [3, 8] in f32: "
                 "it was told to refuse");
    EXPECT_EQ(error.code(), "E-LIBRARY");
    EXPECT_EQ(error.hint(), "-s train.linear_backend=own");
    EXPECT_EQ(error.exit_code(), ExitCode::device);
  }
  EXPECT_EQ(ctx.scratch().used(), 0);
  refuse(1);
  expect_error("does not start on cuda:0: it was told not to start",
               [] { Context refused(Device::cuda(), {.linear = LinearBackend::cublaslt}); });
}

TEST(LinearBackendTest, NeedsACudaDevice) {
  expect_error("cuBLASLt multiplies on CUDA devices, not on cpu",
               [] { Context ctx(Device::cpu(), {.linear = LinearBackend::cublaslt}); });
}

}  // namespace
}  // namespace scgraft
