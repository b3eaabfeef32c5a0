// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/attention_simd.h"
#include "runtime/cpu.h"
#include "runtime/gpu/emulator.h"
#include "tests/kernels/capability.h"
#include "tests/kernels/packed_cells.h"

namespace scgraft {
namespace {

struct Cells {
  std::vector<int32_t> offsets;
  std::vector<int64_t> ids;
  explicit Cells(const std::vector<int32_t>& lengths, int64_t first_id = 100) {
    offsets.push_back(0);
    for (int32_t length : lengths) {
      offsets.push_back(offsets.back() + length);
      ids.push_back(first_id++);
    }
  }
  Packing packing() const { return packing_over(offsets, ids); }
  int64_t tokens() const { return offsets.back(); }
};

constexpr uint32_t kSite = static_cast<uint32_t>(RandomUse::dropout) + 16;

// Inputs, outputs and gradients of one call.
struct Call {
  Cells queries;
  Cells keys;
  int64_t heads;
  Dropout dropout;
  Tensor q, k, v, dout;
  Tensor o, lse, dq, dk, dv;

  void forward(Context& ctx) {
    o = nans(q.shape(), q.dtype());
    lse = nans({queries.tokens(), heads}, size_of(q.dtype()) == 2 ? DType::f32 : q.dtype());
    attention(ctx, q.view(), k.view(), v.view(), queries.packing(), keys.packing(), heads, dropout,
              o.view(), lse.view());
  }
  void backward(Context& ctx) {
    dq = nans(q.shape(), q.dtype());
    dk = nans(k.shape(), q.dtype());
    dv = nans(k.shape(), q.dtype());
    attention_backward(ctx, q.view(), k.view(), v.view(), o.view(), lse.view(), dout.view(),
                       queries.packing(), keys.packing(), heads, dropout, dq.view(), dk.view(),
                       dv.view());
  }
  // The same inputs for the definition.
  Call as_f64() const {
    return {queries,      keys, heads, dropout, in_f64(q), in_f64(k), in_f64(v),
            in_f64(dout), {},   {},    {},      {},        {}};
  }
  Call copy() const { return rounded(q.dtype()); }
  // The same inputs, rounded to a 16-bit type.
  Call rounded(DType dtype) const {
    const auto to = [&](const Tensor& t) {
      return tensor_of(t.shape(), dtype, values_of(t.view()));
    };
    return {queries, keys, heads, dropout, to(q), to(k), to(v), to(dout), {}, {}, {}, {}, {}};
  }
  // The inputs of one cell alone.
  Call only(size_t cell) const {
    const auto rows = [&](const Tensor& t, const Cells& cells) {
      const int32_t begin = cells.offsets[cell], end = cells.offsets[cell + 1];
      return tensor_of({end - begin, t.dim(1)}, t.dtype(), values_of(t.view().rows(begin, end)));
    };
    const auto alone = [&](const Cells& cells) {
      return Cells({cells.offsets[cell + 1] - cells.offsets[cell]}, cells.ids[cell]);
    };
    return {alone(queries),
            alone(keys),
            heads,
            dropout,
            rows(q, queries),
            rows(k, keys),
            rows(v, keys),
            rows(dout, queries),
            {},
            {},
            {},
            {},
            {}};
  }
  // Where q is.
  Tensor nans(Shape shape, DType dtype) const {
    const std::vector<double> values(static_cast<size_t>(shape.numel()), NAN);
    return tensor_of(shape, dtype, values).to(q.device());
  }
};

class AttentionTest : public OpTest {
 protected:
  Call call(const Cells& queries, const Cells& keys, int64_t heads, int64_t head_dim, float p = 0) {
    const Shape query_shape{queries.tokens(), heads * head_dim};
    const Shape key_shape{keys.tokens(), heads * head_dim};
    return {queries,
            keys,
            heads,
            {p, kSite},
            random(query_shape),
            random(key_shape),
            random(key_shape),
            random(query_shape),
            {},
            {},
            {},
            {},
            {}};
  }
  Call call(const Cells& cells, int64_t heads, int64_t head_dim, float p = 0) {
    return call(cells, cells, heads, head_dim, p);
  }
  bool fast() const { return !GetParam().reference; }
  bool is_f64() const { return dtype() == DType::f64; }
  bool on_cuda() { return ctx().device().is_cuda(); }
};
INSTANTIATE_OP_TEST(AttentionTest);

Context definition() { return Context(Device::cpu(), {.threads = 2, .reference = true}); }

TEST_P(AttentionTest, SingleKeyReturnsItsValue) {
  for (int64_t head_dim : {1, 3, 8, 64}) {
    Call c = call(Cells({1, 33, 2}), Cells({1, 1, 1}), 2, head_dim);
    c.forward(ctx());
    const std::vector<double> v = values_of(c.v.view());
    std::vector<double> want;
    const auto dim = 2 * head_dim;
    for (size_t cell = 0; cell < 3; ++cell)
      for (int32_t i = c.queries.offsets[cell]; i < c.queries.offsets[cell + 1]; ++i) {
        const auto row = v.begin() + static_cast<int64_t>(cell) * dim;
        want.insert(want.end(), row, row + dim);
      }
    expect_close(c.o.view(), want);
  }
}

// With every value 1 the output is the sum of the weights; with dropout it is not.
TEST_P(AttentionTest, WeightsOfEveryRowSumToOne) {
  const Cells cells({1, 2, 3, 31, 33, 257});
  Call c = call(cells, 2, 16);
  c.v = tensor(c.v.shape(), std::vector<double>(static_cast<size_t>(c.v.numel()), 1.0));
  c.forward(ctx());
  expect_close(c.o.view(), std::vector<double>(static_cast<size_t>(c.o.numel()), 1.0), 257);
}

// The log-sum-exp that is kept is the one of the scores, so exp(score - L) sums to one as well.
TEST_P(AttentionTest, LseIsTheLogOfTheSumOfScores) {
  const int64_t n = 33, head_dim = 8;
  Call c = call(Cells({33}), 2, head_dim);
  c.forward(ctx());
  const std::vector<double> q = values_of(c.q.view()), k = values_of(c.k.view());
  std::vector<double> want;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t head = 0; head < 2; ++head) {
      double sum = 0;
      for (int64_t j = 0; j < n; ++j) {
        double score = 0;
        for (int64_t d = 0; d < head_dim; ++d)
          score += q[static_cast<size_t>(i * 16 + head * head_dim + d)] *
                   k[static_cast<size_t>(j * 16 + head * head_dim + d)];
        sum += std::exp(score / std::sqrt(static_cast<double>(head_dim)));
      }
      want.push_back(std::log(sum));
    }
  expect_close(c.lse.view(), want, n);
}

TEST_P(AttentionTest, EqualScoresAverageTheValues) {
  Call c = call(Cells({2}), 1, 2);
  c.q = tensor({2, 2}, {0, 0, 1, 1});
  c.k = tensor({2, 2}, {1, 0, 0, 1});
  c.v = tensor({2, 2}, {1, 2, 3, 6});
  c.forward(ctx());
  expect_close(c.o.view(), {2, 4, 2, 4}, 2);
  expect_close(c.lse.view(), {std::log(2.0), std::log(2.0) + 1 / std::sqrt(2.0)}, 2);
}

TEST_P(AttentionTest, WeightsAreTheSoftmaxOfScaledScores) {
  Call c = call(Cells({2}), 1, 4);
  c.q = tensor({2, 4}, {2, 0, 0, 0, 0, 0, 0, 0});
  c.k = tensor({2, 4}, {std::log(3.0), 0, 0, 0, 0, 0, 0, 0});  // scores log 3 and 0: 3/4, 1/4
  c.v = tensor({2, 4}, {4, 0, 0, 0, 0, 4, 0, 8});
  c.forward(ctx());
  expect_close(c.o.view(), {3, 1, 0, 2, 2, 2, 0, 4}, 4);
  expect_close(c.lse.view(), {std::log(4.0), std::log(2.0)}, 4);
}

TEST_P(AttentionTest, CellWithoutKeysGivesZeros) {
  Call c = call(Cells({2, 1}), Cells({0, 1}), 2, 8);
  c.forward(ctx());
  c.backward(ctx());
  for (size_t i = 0; i < 32; ++i) {
    EXPECT_EQ(values_of(c.o.view())[i], 0);
    EXPECT_EQ(values_of(c.dq.view())[i], 0);
  }
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(values_of(c.lse.view())[i], -INFINITY);
}

TEST_P(AttentionTest, CellWithoutQueriesGivesZeroGradients) {
  Call c = call(Cells({0, 1}), Cells({3, 1}), 1, 8);
  c.forward(ctx());
  c.backward(ctx());
  for (size_t i = 0; i < 24; ++i) {
    EXPECT_EQ(values_of(c.dk.view())[i], 0);
    EXPECT_EQ(values_of(c.dv.view())[i], 0);
  }
}

TEST_P(AttentionTest, NoCellsIsNoWork) {
  Call c = call(Cells({}), 2, 8);
  c.forward(ctx());
  c.backward(ctx());
  EXPECT_EQ(c.o.numel(), 0);
}

TEST_P(AttentionTest, AgreesWithTheDefinitionInDoublePrecision) {
  if (is_f64()) GTEST_SKIP() << "the definition in double precision is the other side";
  for (int64_t head_dim : {1, 2, 3, 8, 16, 31, 33, 64, 80})
    for (float p : {0.0f, 0.3f}) {
      // The long cell only with the width of real models: the definition takes its time.
      const Cells cells({0, 1, 2, 3, 31, 33, 64, 65, head_dim == 64 ? 257 : 17});
      SCOPED_TRACE(cat("head_dim ", head_dim, ", dropout ", p));
      Call c = call(cells, 2, head_dim, p);
      Call want = c.as_f64();
      c.forward(ctx());
      c.backward(ctx());
      Context reference = definition();
      want.forward(reference);
      want.backward(reference);
      expect_close(c.o.view(), values_of(want.o.view()), 257);
      expect_close(c.lse.view(), values_of(want.lse.view()), 257);
      expect_close(c.dq.view(), values_of(want.dq.view()), 257);
      expect_close(c.dk.view(), values_of(want.dk.view()), 257);
      expect_close(c.dv.view(), values_of(want.dv.view()), 257);
    }
}

TEST_P(AttentionTest, ClsOnlyQueriesEqualTheFirstRows) {
  const std::vector<int32_t> lengths{5, 130, 257};
  for (float p : {0.0f, 0.3f}) {
    Call all = call(Cells(lengths), 2, 16, p);
    Call cls = call(Cells({1, 1, 1}), Cells(lengths), 2, 16, p);
    cls.k = all.k.clone();
    cls.v = all.v.clone();
    all.forward(ctx());
    std::vector<double> q, dout, want, all_dout(static_cast<size_t>(all.dout.numel()), 0.0);
    for (int64_t cell = 0; cell < 3; ++cell)
      for (int64_t d = 0; d < 32; ++d) {
        const auto at = static_cast<size_t>(all.keys.offsets[static_cast<size_t>(cell)] * 32 + d);
        q.push_back(values_of(all.q.view())[at]);
        dout.push_back(values_of(all.dout.view())[at]);
        want.push_back(values_of(all.o.view())[at]);
        all_dout[at] = dout.back();
      }
    cls.q = tensor({3, 32}, q);
    cls.dout = tensor({3, 32}, dout);
    all.dout = tensor(all.q.shape(), all_dout);
    cls.forward(ctx());
    expect_close(cls.o.view(), want, 257);
    all.backward(ctx());
    cls.backward(ctx());
    expect_close(cls.dk.view(), all.dk.view(), 257);
    expect_close(cls.dv.view(), all.dv.view(), 257);
  }
}

TEST_P(AttentionTest, GradientsMatchFiniteDifferences) {
  if (!is_f64()) GTEST_SKIP() << "finite differences are taken in f64 only";
  for (float p : {0.0f, 0.4f}) {
    Call c = call(Cells({2, 1, 0, 3}), Cells({3, 18, 2, 4}), 2, 3, p);
    c.forward(ctx());
    c.backward(ctx());
    const auto loss = [&] {
      c.forward(ctx());
      return dot(c.o.view(), c.dout.view());
    };
    expect_gradient(c.q, loss, c.dq.view());
    expect_gradient(c.k, loss, c.dk.view());
    expect_gradient(c.v, loss, c.dv.view());
  }
}

TEST_P(AttentionTest, UnwantedGradientsAreSkippedAndChangeNothing) {
  Call c = call(Cells({3, 70}), 2, 16, 0.2f);
  c.forward(ctx());
  c.backward(ctx());
  for (int wanted = 0; wanted < 8; ++wanted) {
    Tensor got[3] = {poisoned(c.q.shape()), poisoned(c.k.shape()), poisoned(c.k.shape())};
    TensorView views[3];
    for (int i = 0; i < 3; ++i)
      if (wanted >> i & 1) views[i] = got[i].view();
    attention_backward(ctx(), c.q.view(), c.k.view(), c.v.view(), c.o.view(), c.lse.view(),
                       c.dout.view(), c.queries.packing(), c.keys.packing(), c.heads, c.dropout,
                       views[0], views[1], views[2]);
    if (wanted & 1) expect_same_bits(got[0].view(), c.dq.view());
    if (wanted & 2) expect_same_bits(got[1].view(), c.dk.view());
    if (wanted & 4) expect_same_bits(got[2].view(), c.dv.view());
  }
}

void expect_all_same_bits(const Call& a, const Call& b) {
  expect_same_bits(a.o.view(), b.o.view());
  expect_same_bits(a.lse.view(), b.lse.view());
  expect_same_bits(a.dq.view(), b.dq.view());
  expect_same_bits(a.dk.view(), b.dk.view());
  expect_same_bits(a.dv.view(), b.dv.view());
}

TEST_P(AttentionTest, ThreadCountDoesNotChangeABit) {
  Call c = call(Cells({33, 140, 7, 200}), 3, 16, 0.2f);
  Call one{c.queries,      c.keys, c.heads, c.dropout, c.q.clone(), c.k.clone(), c.v.clone(),
           c.dout.clone(), {},     {},      {},        {},          {}};
  c.forward(ctx());
  c.backward(ctx());
  Context single(test_device(), {.threads = 1, .reference = GetParam().reference});
  one.forward(single);
  one.backward(single);
  expect_all_same_bits(c, one);
}

TEST_P(AttentionTest, BatchMatesDoNotChangeABit) {
  const int64_t dim = 2 * 24;
  Call c = call(Cells({33, 140, 150}, 7), 2, 24, 0.2f);
  c.forward(ctx());
  c.backward(ctx());
  const auto rows = [](const Tensor& t) {
    return tensor_of({140, t.dim(1)}, t.dtype(), values_of(t.view().rows(33, 173)));
  };
  ASSERT_EQ(c.q.dim(1), dim);
  Call alone{Cells({140}, 8),
             Cells({140}, 8),
             2,
             c.dropout,
             rows(c.q),
             rows(c.k),
             rows(c.v),
             rows(c.dout),
             {},
             {},
             {},
             {},
             {}};
  alone.forward(ctx());
  alone.backward(ctx());
  expect_same_bits(c.o.view().rows(33, 173), alone.o.view());
  expect_same_bits(c.lse.view().rows(33, 173), alone.lse.view());
  expect_same_bits(c.dq.view().rows(33, 173), alone.dq.view());
  expect_same_bits(c.dk.view().rows(33, 173), alone.dk.view());
  expect_same_bits(c.dv.view().rows(33, 173), alone.dv.view());
}

TEST_P(AttentionTest, OrderOfKeysDoesNotMatter) {
  const int64_t n = 200;
  Call c = call(Cells({200}), 2, 16);
  const auto reversed = [&](const Tensor& t) {
    const std::vector<double> from = values_of(t.view());
    std::vector<double> to;
    for (int64_t row = n - 1; row >= 0; --row)
      to.insert(to.end(), from.begin() + row * 32, from.begin() + (row + 1) * 32);
    return tensor(t.shape(), to);
  };
  Call other{c.queries,
             c.keys,
             c.heads,
             c.dropout,
             c.q.clone(),
             reversed(c.k),
             reversed(c.v),
             c.dout.clone(),
             {},
             {},
             {},
             {},
             {}};
  for (Call* each : {&c, &other}) {
    each->forward(ctx());
    each->backward(ctx());
  }
  expect_close(other.o.view(), c.o.view(), n);
  expect_close(other.dq.view(), c.dq.view(), n);
  expect_close(other.dk.view(), reversed(c.dk).view(), n);
  expect_close(other.dv.view(), reversed(c.dv).view(), n);
  // All tokens in another order: the same rows in that order, which is what makes a cell a set.
  Call moved{c.queries,
             c.keys,
             c.heads,
             c.dropout,
             reversed(c.q),
             reversed(c.k),
             reversed(c.v),
             reversed(c.dout),
             {},
             {},
             {},
             {},
             {}};
  moved.forward(ctx());
  moved.backward(ctx());
  expect_close(moved.o.view(), reversed(c.o).view(), n);
  expect_close(moved.dq.view(), reversed(c.dq).view(), n);
  expect_close(moved.dk.view(), reversed(c.dk).view(), n);
  expect_close(moved.dv.view(), reversed(c.dv).view(), n);
}

// One batch of two cells or two batches of one.
TEST_P(AttentionTest, ABatchOfTwoEqualsTwoBatchesOfOne) {
  Call both = call(Cells({65, 3}, 7), 2, 16, 0.2f);
  both.forward(ctx());
  both.backward(ctx());
  for (size_t cell = 0; cell < 2; ++cell) {
    const int32_t begin = both.keys.offsets[cell], end = both.keys.offsets[cell + 1];
    const auto rows = [&](const Tensor& t) {
      return tensor_of({end - begin, t.dim(1)}, t.dtype(), values_of(t.view().rows(begin, end)));
    };
    const Cells own({end - begin}, both.keys.ids[cell]);
    Call one{own,
             own,
             2,
             both.dropout,
             rows(both.q),
             rows(both.k),
             rows(both.v),
             rows(both.dout),
             {},
             {},
             {},
             {},
             {}};
    one.forward(ctx());
    one.backward(ctx());
    expect_same_bits(one.o.view(), both.o.view().rows(begin, end));
    expect_same_bits(one.lse.view(), both.lse.view().rows(begin, end));
    expect_same_bits(one.dq.view(), both.dq.view().rows(begin, end));
    expect_same_bits(one.dk.view(), both.dk.view().rows(begin, end));
    expect_same_bits(one.dv.view(), both.dv.view().rows(begin, end));
  }
}

// With equal scores and one-hot values the output spells the mask out.
TEST_P(AttentionTest, DropoutMaskIsTheDocumentedFunctionOfItsCoordinates) {
  const int64_t n = 48;
  Call c = call(Cells({48}, 77), 2, n, 0.2f);
  ctx().random() = {.seed = 0x123456789abcdef0u, .step = 9};
  c.q = zeros(c.q.shape());
  std::vector<double> v(static_cast<size_t>(n * 2 * n), 0.0);
  for (int64_t j = 0; j < n; ++j)
    for (int64_t head = 0; head < 2; ++head) v[static_cast<size_t>(j * 2 * n + head * n + j)] = 1;
  c.v = tensor(c.v.shape(), v);
  c.forward(ctx());
  std::vector<double> want;
  for (uint32_t i = 0; i < n; ++i)
    for (uint32_t head = 0; head < 2; ++head)
      for (uint32_t j = 0; j < n; ++j) {
        const PhiloxCounter block =
            philox({kSite + (head << 20), 77, i, j / 16}, dropout_key(ctx().random()));
        const uint32_t byte = block[j % 16 / 4] >> (8 * (j % 4)) & 0xff;
        want.push_back(byte >= 51 ? 256.0 / 205.0 / n : 0.0);
      }
  expect_close(c.o.view(), want, n);
}

TEST_P(AttentionTest, DropoutKeepsItsRateAndIsUnbiased) {
  const int64_t n = 257;
  Call c = call(Cells({257}), 2, 8, 0.3f);
  c.q = zeros(c.q.shape());
  c.v = tensor(c.v.shape(), std::vector<double>(static_cast<size_t>(c.v.numel()), 1.0));
  c.forward(ctx());
  // Each output is the kept share over 1 - 77/256; its mean over all rows and heads is 1.
  const std::vector<double> o = values_of(c.o.view());
  const double mean = std::accumulate(o.begin(), o.end(), 0.0) / static_cast<double>(o.size());
  const double keep = 179.0 / 256.0;
  const double deviation = std::sqrt((1 - keep) / keep / static_cast<double>(2 * n * n));
  EXPECT_NEAR(mean, 1.0, 5 * deviation);
  double squares = 0;
  for (double x : o) squares += (x - 1) * (x - 1);
  EXPECT_NEAR(squares / static_cast<double>(o.size()), (1 - keep) / keep / n,
              0.3 * (1 - keep) / keep / n);
}

TEST_P(AttentionTest, LargeScoresStayFinite) {
  Call c = call(Cells({130}), 1, 8);
  std::vector<double> k = values_of(c.k.view());
  for (double& x : k) x *= 300;
  c.k = tensor(c.k.shape(), k);
  c.forward(ctx());
  c.backward(ctx());
  for (const Tensor* t : {&c.o, &c.lse, &c.dq, &c.dk, &c.dv})
    for (double x : values_of(t->view())) ASSERT_TRUE(std::isfinite(x));
}

TEST_P(AttentionTest, NanStaysNanAndInItsCell) {
  Call c = call(Cells({20, 20}), 1, 8);
  std::vector<double> k = values_of(c.k.view());
  k[3 * 8] = NAN;
  c.k = tensor(c.k.shape(), k);
  c.forward(ctx());
  const std::vector<double> o = values_of(c.o.view());
  for (size_t i = 0; i < 20 * 8; ++i) ASSERT_TRUE(std::isnan(o[i]));
  for (size_t i = 20 * 8; i < o.size(); ++i) ASSERT_TRUE(std::isfinite(o[i]));
}

TEST_P(AttentionTest, ErrorsSayWhatWasWantedAndWhatCame) {
  Call c = call(Cells({3, 4}), 2, 8);
  c.forward(ctx());
  const Packing cells = c.keys.packing();
  const auto run = [&](const Tensor& q, const Tensor& k, const Packing& queries, int64_t heads,
                       Dropout dropout, Tensor& o, Tensor& lse) {
    attention(ctx(), q.view(), k.view(), c.v.view(), queries, cells, heads, dropout, o.view(),
              lse.view());
  };
  Tensor short_k = zeros({6, 16});
  expect_error("attention: k must be [7, 16], got [6, 16]",
               [&] { run(c.q, short_k, cells, 2, {}, c.o, c.lse); });
  expect_error("q must be [query tokens, heads * head_dim], got [7, 16] with 3 heads",
               [&] { run(c.q, c.k, cells, 3, {}, c.o, c.lse); });
  Tensor wide_lse = zeros({7, 3});
  expect_error("lse must be [7, 2], got [7, 3]",
               [&] { run(c.q, c.k, cells, 2, {}, c.o, wide_lse); });
  Tensor short_o = zeros({6, 16});
  expect_error("o must be [7, 16] like q, got [6, 16]",
               [&] { run(c.q, c.k, cells, 2, {}, short_o, c.lse); });
  const Cells one({7});
  expect_error("packings of the same cells, got 2 and 3 offsets",
               [&] { run(c.q, c.k, one.packing(), 2, {}, c.o, c.lse); });
  expect_error("the dropout probability must be below 255.5/256, got 1", [&] {
    run(c.q, c.k, cells, 2, {1.0f, kSite}, c.o, c.lse);
  });
  Tensor integers({7, 16}, DType::i32, test_device());
  expect_error(cat("attention: computes on ", on_cuda() ? "f32, bf16 or f16" : "f32 or f64",
                   ", q is i32; convert it first"),
               [&] { run(integers, c.k, cells, 2, {}, c.o, c.lse); });
  const Packing nameless = packing_over(c.keys.offsets);
  expect_error("dropout needs the id of each of the 2 cells in the key packing, got 0", [&] {
    attention(ctx(), c.q.view(), c.k.view(), c.v.view(), cells, nameless, 2, {0.2f, kSite},
              c.o.view(), c.lse.view());
  });
}

// ---- 16-bit types, which only CUDA has

class AttentionSixteenBitTest : public AttentionTest {
 protected:
  void SetUp() override {
    AttentionTest::SetUp();
    if (!on_cuda()) GTEST_SKIP() << "the CPU computes in f32 and f64";
  }
  // Calls test(dtype) for both types and every choice of kernels.
  template <class Test>
  void for_each_type(Test&& test) {
    for (const int capability : Capability::all())
      for (const DType type : {DType::bf16, DType::f16}) {
        SCOPED_TRACE(cat(type, ", compute capability ", capability));
        const Capability chosen(capability);
        test(type);
      }
  }
  // Against the definition in f64. It takes the o of the call for the gradients: do . o cancels
  // against weights, which makes the rounding of o visible in them.
  void expect_agreement(Call& c, int64_t longest) {
    Call want = c.as_f64();
    Context reference = definition();
    c.forward(ctx());
    want.forward(reference);
    expect_close(c.o.view(), values_of(want.o.view()), longest);
    expect_close(c.lse.view(), values_of(want.lse.view()), longest);
    want.o = in_f64(c.o);
    c.backward(ctx());
    want.backward(reference);
    expect_close(c.dq.view(), values_of(want.dq.view()), longest);
    expect_close(c.dk.view(), values_of(want.dk.view()), longest);
    expect_close(c.dv.view(), values_of(want.dv.view()), longest);
  }
};
INSTANTIATE_OP_TEST(AttentionSixteenBitTest);

TEST_P(AttentionSixteenBitTest, AgreesWithTheDefinitionInDoublePrecision) {
  for_each_type([&](DType type) {
    for (const int64_t head_dim : {8, 32, 33, 40, 64, 96, 128})
      for (const float p : {0.0f, 0.3f}) {
        // Several widths share a kernel; dropout takes part in all of them.
        if (p == 0 && head_dim != 64 && head_dim != 128) continue;
        SCOPED_TRACE(cat("head_dim ", head_dim, ", dropout ", p));
        Call c =
            call(Cells({0, 1, 17, 65, head_dim == 64 ? 130 : 2}), 2, head_dim, p).rounded(type);
        expect_agreement(c, 130);
      }
  });
}

TEST_P(AttentionSixteenBitTest, FewQueriesOfLongCells) {
  for_each_type([&](DType type) {
    for (const int64_t head_dim : {33, 64, 128}) {
      SCOPED_TRACE(cat("head_dim ", head_dim));
      Call c = call(Cells({1, 0, 2, 3}), Cells({150, 70, 33, 3}), 2, head_dim, 0.2f).rounded(type);
      expect_agreement(c, 150);
    }
  });
}

TEST_P(AttentionSixteenBitTest, CellWithoutKeysGivesZeros) {
  for_each_type([&](DType type) {
    for (const int64_t head_dim : {33, 64}) {
      Call c = call(Cells({2, 1, 70}), Cells({1, 1, 0}), 2, head_dim).rounded(type);
      c.forward(ctx());
      c.backward(ctx());
      const std::vector<double> o = values_of(c.o.view()), dq = values_of(c.dq.view());
      const std::vector<double> lse = values_of(c.lse.view());
      for (size_t i = static_cast<size_t>(3 * 2 * head_dim); i < o.size(); ++i) {
        ASSERT_EQ(o[i], 0);
        ASSERT_EQ(dq[i], 0);
      }
      for (size_t i = 3 * 2; i < lse.size(); ++i) ASSERT_EQ(lse[i], -INFINITY);
    }
  });
}

TEST_P(AttentionSixteenBitTest, BatchMatesDoNotChangeABit) {
  for_each_type([&](DType type) {
    Call c = call(Cells({33, 140, 150}, 7), 2, 64, 0.2f).rounded(type);
    c.forward(ctx());
    c.backward(ctx());
    Call alone = c.only(1);
    alone.forward(ctx());
    alone.backward(ctx());
    expect_same_bits(c.o.view().rows(33, 173), alone.o.view());
    expect_same_bits(c.lse.view().rows(33, 173), alone.lse.view());
    expect_same_bits(c.dq.view().rows(33, 173), alone.dq.view());
    expect_same_bits(c.dk.view().rows(33, 173), alone.dk.view());
    expect_same_bits(c.dv.view().rows(33, 173), alone.dv.view());
  });
}

TEST_P(AttentionSixteenBitTest, UnwantedGradientsAreSkippedAndChangeNothing) {
  for_each_type([&](DType type) {
    Call c = call(Cells({3, 70}), 2, 32, 0.2f).rounded(type);
    c.forward(ctx());
    c.backward(ctx());
    for (int wanted = 1; wanted < 8; ++wanted) {
      Tensor got[3] = {c.nans(c.q.shape(), type), c.nans(c.k.shape(), type),
                       c.nans(c.k.shape(), type)};
      TensorView views[3];
      for (int i = 0; i < 3; ++i)
        if (wanted >> i & 1) views[i] = got[i].view();
      attention_backward(ctx(), c.q.view(), c.k.view(), c.v.view(), c.o.view(), c.lse.view(),
                         c.dout.view(), c.queries.packing(), c.keys.packing(), c.heads, c.dropout,
                         views[0], views[1], views[2]);
      if (wanted & 1) expect_same_bits(got[0].view(), c.dq.view());
      if (wanted & 2) expect_same_bits(got[1].view(), c.dk.view());
      if (wanted & 4) expect_same_bits(got[2].view(), c.dv.view());
    }
  });
}

// exp(-lse) alone overflows, which must not reach tiles that are partly empty.
TEST_P(AttentionTest, VeryNegativeScoresStayFinite) {
  for (const int capability : Capability::all())
    for (const DType type : {dtype(), DType::bf16, DType::f16}) {
      if (size_of(type) == 2 && !on_cuda()) continue;
      const Capability chosen(capability);
      Call c = call(Cells({70}), 1, 64);
      c.q = tensor(c.q.shape(), std::vector<double>(70 * 64, 8.0));
      c.k = tensor(c.k.shape(), std::vector<double>(70 * 64, -8.0));
      c = c.rounded(type);
      c.forward(ctx());
      c.backward(ctx());
      for (const Tensor* t : {&c.o, &c.lse, &c.dq, &c.dk, &c.dv})
        for (const double x : values_of(t->view())) ASSERT_TRUE(std::isfinite(x));
    }
}

TEST_P(AttentionTest, F32FitsTheSharedMemoryOfEveryDevice) {
  const Capability smallest(75);
  for (const int64_t head_dim : {32, 64, 128}) {
    Call c = call(Cells({3}), 1, head_dim);
    c.forward(ctx());
    c.backward(ctx());
  }
}

// Threads, warps and blocks may run in any order.
TEST_P(AttentionSixteenBitTest, SchedulingDoesNotChangeABit) {
  if constexpr (!kCudaEmulated) GTEST_SKIP() << "only the emulated device can be told an order";
  const auto check = [&](Call c) {
    c.forward(ctx());
    c.backward(ctx());
    Call other = c.copy();
    for (const gpu::Order order : {gpu::Order::reverse, gpu::Order::random}) {
      gpu::emulator_options().order = order;
      other.forward(ctx());
      other.backward(ctx());
      gpu::emulator_options().order = gpu::Order::forward;
      expect_all_same_bits(c, other);
    }
  };
  for_each_type([&](DType type) { check(call(Cells({70, 3}), 2, 64, 0.2f).rounded(type)); });
  check(call(Cells({70, 3}), 2, 24, 0.2f));
}

// What lies behind the end of a cell is another cell: nothing of it may be touched.
TEST_P(AttentionSixteenBitTest, NanStaysInItsCell) {
  for_each_type([&](DType type) {
    Call c = call(Cells({20, 20, 20}), 1, 64).rounded(type);
    for (Tensor* t : {&c.q, &c.k, &c.v, &c.dout}) {
      std::vector<double> values = values_of(t->view());
      for (size_t i = 20 * 64; i < 40 * 64; ++i) values[i] = NAN;
      *t = tensor_of(t->shape(), type, values);
    }
    c.forward(ctx());
    c.backward(ctx());
    for (const Tensor* t : {&c.o, &c.dq, &c.dk, &c.dv}) {
      const std::vector<double> values = values_of(t->view());
      for (size_t i = 0; i < values.size(); ++i)
        ASSERT_EQ(std::isnan(values[i]), i >= 20 * 64 && i < 40 * 64) << i;
    }
  });
}

TEST_P(AttentionSixteenBitTest, TilesAreReadWithoutBankConflicts) {
  if constexpr (!kCudaEmulated) GTEST_SKIP() << "only the emulated device counts them";
  const auto extra = [] { return gpu::emulator_options().last_report.extra_phases(); };
  for_each_type([&](DType type) {
    for (const int64_t head_dim : {32, 64, 96, 128}) {
      SCOPED_TRACE(cat("head_dim ", head_dim));
      Call c = call(Cells({70}), 1, head_dim).rounded(type);
      c.forward(ctx());
      EXPECT_EQ(extra(), 0);
      // The kernel for dk and dv is the last one, or the one for dq.
      c.backward(ctx());
      EXPECT_EQ(extra(), 0);
      attention_backward(ctx(), c.q.view(), c.k.view(), c.v.view(), c.o.view(), c.lse.view(),
                         c.dout.view(), c.queries.packing(), c.keys.packing(), c.heads, c.dropout,
                         c.dq.view(), {}, {});
      EXPECT_EQ(extra(), 0);
    }
  });
}

TEST_P(AttentionSixteenBitTest, ErrorsSayWhatWasWantedAndWhatCame) {
  Call wide = call(Cells({3}), 2, 129);
  expect_error("attention: heads on cuda:0 are at most 128 wide, got 129",
               [&] { wide.forward(ctx()); });
  Call c = call(Cells({3}), 2, 8).rounded(DType::bf16);
  c.forward(ctx());
  Tensor lse = c.nans(c.lse.shape(), DType::bf16);
  expect_error("attention: lse of a bf16 attention is f32, got bf16", [&] {
    attention(ctx(), c.q.view(), c.k.view(), c.v.view(), c.queries.packing(), c.keys.packing(), 2,
              {}, c.o.view(), lse.view());
  });
}

std::vector<const AttentionSimd*> levels() {
  std::vector<const AttentionSimd*> all{&v3::attention_simd};
#if defined(__x86_64__)
  if (cpu_level() == CpuLevel::v4) all.push_back(&v4::attention_simd);
#endif
  return all;
}

TEST(AttentionSimd, Exp2IsAccurateOnItsWholeRange) {
  const int64_t n = 1 << 20;
  std::vector<float> x(n), y(n);
  for (int64_t i = 0; i < n; ++i)
    x[static_cast<size_t>(i)] = -126.0f * static_cast<float>(i) / static_cast<float>(n);
  for (const AttentionSimd* level : levels()) {
    level->exp2(x.data(), n, y.data());
    double worst = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      const double want = std::exp2(static_cast<double>(x[i]));
      worst = std::max(worst, std::abs(static_cast<double>(y[i]) - want) / want);
    }
    EXPECT_LT(worst, 2e-7);
  }
}

TEST(AttentionSimd, Exp2AtItsEdges) {
  const float below = std::nextafter(-126.0f, -200.0f);
  const float x[16] = {0, -1, -126, below, -127, -1000, -INFINITY, NAN, -0.5f, 1e-6f, -1e-30f};
  for (const AttentionSimd* level : levels()) {
    float y[16];
    level->exp2(x, 16, y);
    EXPECT_EQ(y[0], 1.0f);
    EXPECT_EQ(y[1], 0.5f);
    EXPECT_EQ(y[2], 0x1p-126f);
    for (int i = 3; i < 7; ++i) EXPECT_EQ(y[i], 0.0f);
    EXPECT_TRUE(std::isnan(y[7]));
    EXPECT_NEAR(y[8], std::sqrt(0.5), 2e-7);
    EXPECT_NEAR(y[9], 1.0, 2e-6);
    EXPECT_EQ(y[10], 1.0f);
  }
}

}  // namespace
}  // namespace scgraft
