// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention_mask.h"

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kernels/attention.h"
#include "runtime/gpu/emulator.h"
#include "tests/kernels/capability.h"
#include "tests/kernels/packed_cells.h"

namespace scgraft {
namespace {

constexpr uint32_t kSite = static_cast<uint32_t>(RandomUse::dropout) + 16;

// What a call is about; the rules of the mask as plain numbers.
struct Case {
  std::string name;
  std::vector<int32_t> lengths;
  int64_t heads = 2;
  int64_t head_dim = 64;
  float dropout = 0;
  std::vector<uint8_t> marks = {};  // of all keys; empty: no key bits
  std::vector<int32_t> known = {};  // of all cells; empty: no rule
  bool causal = false;
  int64_t prefix = 0;                 // rows
  std::vector<int32_t> queries = {};  // lengths of queries; empty: those of the keys
  int64_t first_id = 100;

  std::vector<int64_t> ids() const {
    std::vector<int64_t> all;
    for (size_t cell = 0; cell < lengths.size(); ++cell)
      all.push_back(first_id + static_cast<int64_t>(cell));
    return all;
  }
  PackedCells keys() const { return {lengths, ids()}; }
  PackedCells query_cells() const { return {queries.empty() ? lengths : queries, ids()}; }
  int64_t dim() const { return heads * head_dim; }
  // Query i and key j of a cell whose keys begin at row `first` of all.
  bool sees(size_t cell, int64_t first, int64_t i, int64_t j) const {
    if (!marks.empty() && marks[static_cast<size_t>(first + j)] == 0) return false;
    if (!known.empty() && j >= known[cell] && i != j) return false;
    return !causal || j <= i;
  }
  // One cell of it.
  Case only(size_t cell) const {
    Case one = *this;
    one.lengths = {lengths[cell]};
    const PackedCells cells = keys();
    if (!marks.empty())
      one.marks.assign(marks.begin() + cells.offsets[cell],
                       marks.begin() + cells.offsets[cell + 1]);
    if (!known.empty()) one.known = {known[cell]};
    if (!queries.empty()) one.queries = {queries[cell]};
    one.first_id = first_id + static_cast<int64_t>(cell);
    return one;
  }
};

// Marks of keys: runs of `hidden` unseen ones after every `seen` seen ones.
std::vector<uint8_t> striped(const std::vector<int32_t>& lengths, int seen, int hidden) {
  std::vector<uint8_t> marks;
  for (const int32_t length : lengths)
    for (int j = 0; j < length; ++j) marks.push_back(j % (seen + hidden) < seen ? 1 : 0);
  return marks;
}

struct Inputs {
  Tensor q, k, v, dout, prefix_k, prefix_v;

  Inputs rounded(DType dtype) const {
    const auto to = [&](const Tensor& t) {
      return tensor_of(t.shape(), dtype, values_of(t.view()));
    };
    return {to(q), to(k), to(v), to(dout), to(prefix_k), to(prefix_v)};
  }
};

struct Outputs {
  Tensor o, lse, dq, dk, dv, prefix_dk, prefix_dv;
};

// The same as lists of numbers.
struct Wanted {
  std::vector<double> o, lse, dq, dk, dv, prefix_dk, prefix_dv;
};

// The definition in f64: builds the matrix of who sees whom, puts the prefix in front of the keys
// of every cell, and multiplies. o and L of the backward pass are those that it is given.
class Definition {
 public:
  Definition(const Case& setup, const Inputs& x, const RandomState& random)
      : setup_(setup),
        random_(random),
        q_(values_of(x.q.view())),
        dout_(values_of(x.dout.view())),
        k_(values_of(x.k.view())),
        v_(values_of(x.v.view())),
        prefix_k_(values_of(x.prefix_k.view())),
        prefix_v_(values_of(x.prefix_v.view())) {}

  Wanted forward() {
    Wanted w;
    w.o.assign(q_.size(), 0.0);
    w.lse.assign(q_.size() / static_cast<size_t>(setup_.head_dim), 0.0);
    each_head([&](const Head& h) {
      for (int64_t i = 0; i < h.rows; ++i) {
        double largest = -std::numeric_limits<double>::infinity(), sum = 0;
        for (int64_t j = 0; j < h.columns; ++j)
          if (h.seen(i, j)) largest = std::max(largest, h.score(i, j));
        for (int64_t j = 0; j < h.columns; ++j)
          if (h.seen(i, j)) sum += std::exp(h.score(i, j) - largest);
        const double lse = largest + std::log(sum);
        w.lse[h.lse_at(i)] = lse;
        for (int64_t j = 0; j < h.columns; ++j)
          if (h.seen(i, j))
            for (int64_t d = 0; d < h.dim; ++d)
              w.o[h.at(i) + static_cast<size_t>(d)] +=
                  std::exp(h.score(i, j) - lse) * h.factor(i, j) * h.v(j, d);
      }
    });
    return w;
  }

  void backward(const std::vector<double>& o, const std::vector<double>& lse, Wanted& w) {
    w.dq.assign(q_.size(), 0.0);
    w.dk.assign(k_.size(), 0.0);
    w.dv.assign(k_.size(), 0.0);
    w.prefix_dk.assign(prefix_k_.size(), 0.0);
    w.prefix_dv.assign(prefix_k_.size(), 0.0);
    each_head([&](const Head& h) {
      for (int64_t i = 0; i < h.rows; ++i)
        for (int64_t j = 0; j < h.columns; ++j) {
          if (!h.seen(i, j)) continue;
          double product = 0, delta = 0;
          for (int64_t d = 0; d < h.dim; ++d) {
            product += dout_[h.at(i) + static_cast<size_t>(d)] * h.v(j, d);
            delta += dout_[h.at(i) + static_cast<size_t>(d)] * o[h.at(i) + static_cast<size_t>(d)];
          }
          const double p = std::exp(h.score(i, j) - lse[h.lse_at(i)]);
          const double ds = p * (h.factor(i, j) * product - delta) / std::sqrt(double(h.dim));
          std::vector<double>& dk = j < setup_.prefix ? w.prefix_dk : w.dk;
          std::vector<double>& dv = j < setup_.prefix ? w.prefix_dv : w.dv;
          for (int64_t d = 0; d < h.dim; ++d) {
            const size_t qi = h.at(i) + static_cast<size_t>(d),
                         kj = h.key_at(j) + static_cast<size_t>(d);
            w.dq[qi] += ds * h.k(j, d);
            dk[kj] += ds * q_[qi];
            dv[kj] += p * h.factor(i, j) * dout_[qi];
          }
        }
    });
  }

 private:
  // One head of one cell: scores, mask and dropout as matrices [rows, columns].
  struct Head {
    const Definition& all;
    int64_t first_query, first_key, head, rows, columns, dim;
    std::vector<double> scores, factors;
    std::vector<bool> mask;

    size_t at(int64_t i) const {
      return static_cast<size_t>((first_query + i) * all.setup_.dim() + head * dim);
    }
    size_t lse_at(int64_t i) const {
      return static_cast<size_t>((first_query + i) * all.setup_.heads + head);
    }
    // Of the gradient that key j belongs to.
    size_t key_at(int64_t j) const {
      const int64_t row = j < all.setup_.prefix ? j : first_key + j - all.setup_.prefix;
      return static_cast<size_t>(row * all.setup_.dim() + head * dim);
    }
    double k(int64_t j, int64_t d) const {
      return (j < all.setup_.prefix ? all.prefix_k_ : all.k_)[key_at(j) + static_cast<size_t>(d)];
    }
    double v(int64_t j, int64_t d) const {
      return (j < all.setup_.prefix ? all.prefix_v_ : all.v_)[key_at(j) + static_cast<size_t>(d)];
    }
    size_t cell_of(int64_t i, int64_t j) const { return static_cast<size_t>(i * columns + j); }
    bool seen(int64_t i, int64_t j) const { return mask[cell_of(i, j)]; }
    double score(int64_t i, int64_t j) const { return scores[cell_of(i, j)]; }
    double factor(int64_t i, int64_t j) const { return factors[cell_of(i, j)]; }
  };

  template <class F>
  void each_head(F&& f) {
    const PackedCells queries = setup_.query_cells(), keys = setup_.keys();
    for (size_t cell = 0; cell < setup_.lengths.size(); ++cell)
      for (int64_t head = 0; head < setup_.heads; ++head) {
        Head h{*this,
               queries.offsets[cell],
               keys.offsets[cell],
               head,
               queries.offsets[cell + 1] - queries.offsets[cell],
               setup_.prefix + setup_.lengths[cell],
               setup_.head_dim,
               {},
               {},
               {}};
        for (int64_t i = 0; i < h.rows; ++i)
          for (int64_t j = 0; j < h.columns; ++j) {
            h.mask.push_back(j < setup_.prefix ||
                             setup_.sees(cell, h.first_key, i, j - setup_.prefix));
            double score = 0;
            for (int64_t d = 0; d < h.dim; ++d)
              score += q_[h.at(i) + static_cast<size_t>(d)] * h.k(j, d);
            h.scores.push_back(score / std::sqrt(static_cast<double>(h.dim)));
            h.factors.push_back(factor(queries.ids[cell], head, i, j));
          }
        f(h);
      }
  }
  // As kernels/dropout.h words it; prefix key p is key p - 64.
  double factor(int64_t id, int64_t head, int64_t i, int64_t j) const {
    if (setup_.dropout == 0) return 1;
    const auto threshold = static_cast<uint32_t>(setup_.dropout * 256.0f + 0.5f);
    const bool own = j >= setup_.prefix;
    const auto lane = static_cast<uint32_t>((own ? j - setup_.prefix : j) % 16);
    const uint32_t group = own ? static_cast<uint32_t>((j - setup_.prefix) / 16)
                               : 0xfffffffcu + static_cast<uint32_t>(j / 16);
    const PhiloxCounter words = philox({kSite + (static_cast<uint32_t>(head) << 20),
                                        static_cast<uint32_t>(id), static_cast<uint32_t>(i), group},
                                       dropout_key(random_));
    const uint32_t byte = words[lane / 4] >> (8 * (lane % 4)) & 0xff;
    return byte >= threshold ? 256.0 / (256.0 - threshold) : 0.0;
  }

  const Case setup_;
  const RandomState random_;
  const std::vector<double> q_, dout_, k_, v_, prefix_k_, prefix_v_;
};

// A call with all that it needs in memory of its device.
struct Call {
  Case setup;
  Inputs x;
  Outputs y = {};

  AttentionMask mask() const {
    AttentionMask m;
    m.causal = setup.causal;
    if (!setup.marks.empty()) {
      const PackedCells keys = setup.keys();
      const std::vector<int64_t> words = pack_key_bits(Packing::over(keys.offsets), setup.marks);
      m.key_bits = kept(Shape{static_cast<int64_t>(words.size())}, DType::i64, words);
    }
    if (!setup.known.empty())
      m.known = kept(Shape{static_cast<int64_t>(setup.known.size())}, DType::i32, setup.known);
    return m;
  }
  AttentionPrefix prefix() const {
    if (setup.prefix == 0) return {};
    return {.k = x.prefix_k.view(), .v = x.prefix_v.view()};
  }
  Dropout dropout() const { return {setup.dropout, kSite}; }
  DType sums() const { return size_of(x.q.dtype()) == 2 ? DType::f32 : x.q.dtype(); }

  void forward(Context& ctx) {
    const PackedCells queries = setup.query_cells(), keys = setup.keys();
    y.o = filled(x.q.shape(), x.q.dtype(), NAN);
    y.lse = filled({queries.rows(), setup.heads}, sums(), NAN);
    attention(ctx, x.q.view(), x.k.view(), x.v.view(), queries.packing(), keys.packing(),
              setup.heads, dropout(), y.o.view(), y.lse.view(), mask(), prefix());
  }
  // Which gradients are wanted: dq, dk, dv, dk and dv of the prefix.
  void backward(Context& ctx, int wanted = 31) {
    const PackedCells queries = setup.query_cells(), keys = setup.keys();
    y.dq = filled(x.q.shape(), x.q.dtype(), NAN);
    y.dk = filled(x.k.shape(), x.q.dtype(), NAN);
    y.dv = filled(x.k.shape(), x.q.dtype(), NAN);
    y.prefix_dk = filled(x.prefix_k.shape(), sums(), 0);
    y.prefix_dv = filled(x.prefix_k.shape(), sums(), 0);
    const auto view = [&](int bit, Tensor& t) {
      return wanted >> bit & 1 ? t.view() : TensorView();
    };
    AttentionPrefixGradient gradient;
    if (setup.prefix > 0) gradient = {.k = view(3, y.prefix_dk), .v = view(4, y.prefix_dv)};
    attention_backward(ctx, x.q.view(), x.k.view(), x.v.view(), y.o.view(), y.lse.view(),
                       x.dout.view(), queries.packing(), keys.packing(), setup.heads, dropout(),
                       view(0, y.dq), view(1, y.dk), view(2, y.dv), mask(), prefix(), gradient);
  }
  // The inputs of one cell.
  Call only(size_t cell) const {
    const PackedCells queries = setup.query_cells(), keys = setup.keys();
    const auto rows = [&](const Tensor& t, const PackedCells& cells) {
      const int32_t begin = cells.offsets[cell], end = cells.offsets[cell + 1];
      return tensor_of({end - begin, t.dim(1)}, t.dtype(), values_of(t.view().rows(begin, end)));
    };
    return {setup.only(cell),
            {rows(x.q, queries), rows(x.k, keys), rows(x.v, keys), rows(x.dout, queries),
             x.prefix_k.clone(), x.prefix_v.clone()}};
  }

  static Tensor filled(Shape shape, DType dtype, double value) {
    return tensor_of(shape, dtype, std::vector<double>(static_cast<size_t>(shape.numel()), value));
  }

 private:
  template <class T>
  static ConstTensorView kept(Shape shape, DType dtype, const std::vector<T>& values) {
    Tensor host(shape, dtype);
    std::copy(values.begin(), values.end(), host.as<T>());
    const auto tensor = std::make_shared<Tensor>(host.to(test_device()));
    keep_for_test(tensor);
    return std::as_const(*tensor).view();
  }
};

const std::vector<int32_t> kLengths = {0, 1, 63, 64, 65, 129, 2};

// Every rule alone, and what can meet.
std::vector<Case> setups() {
  const std::vector<int32_t> known = {0, 0, 63, 10, 64, 70, 0};
  // Stripes of 40 hide whole tiles of 32 keys; one cell has its first 64 keys hidden, one all.
  std::vector<uint8_t> marks = striped(kLengths, 5, 40);
  std::vector<uint8_t> far = striped(kLengths, 1, 0);
  std::fill(far.begin() + 193, far.begin() + 193 + 64, uint8_t{0});  // of the cell of 129
  std::fill(far.begin() + 64, far.begin() + 128, uint8_t{0});        // the cell of 64
  std::vector<Case> all = {
      {.name = "key bits", .lengths = kLengths, .marks = marks},
      {.name = "key bits, whole tiles", .lengths = kLengths, .marks = far},
      {.name = "known", .lengths = kLengths, .known = known},
      {.name = "nothing known, prefix of 1",
       .lengths = kLengths,
       .known = {0, 0, 0, 0, 0, 0, 0},
       .prefix = 1},
      {.name = "known out of range", .lengths = kLengths, .known = {3, -5, 99, -1, 1000, 0, 2}},
      {.name = "causal", .lengths = kLengths, .causal = true},
      {.name = "prefix of 1", .lengths = kLengths, .prefix = 1},
      {.name = "prefix of 64", .lengths = kLengths, .prefix = 64},
      {.name = "key bits, prefix of 8", .lengths = kLengths, .marks = far, .prefix = 8},
      {.name = "known, prefix of 33", .lengths = kLengths, .known = known, .prefix = 33},
      {.name = "causal, prefix of 17", .lengths = kLengths, .causal = true, .prefix = 17},
      {.name = "causal, key bits, known",
       .lengths = kLengths,
       .marks = marks,
       .known = known,
       .causal = true},
      {.name = "causal, key bits, known, prefix of 40",
       .lengths = kLengths,
       .marks = far,
       .known = known,
       .causal = true,
       .prefix = 40},
      {.name = "few queries, key bits, prefix of 5",
       .lengths = kLengths,
       .marks = marks,
       .prefix = 5,
       .queries = {1, 1, 1, 0, 2, 1, 0}},
  };
  return all;
}

class AttentionMaskTest : public OpTest {
 protected:
  Call call(const Case& setup) {
    const Shape queries{setup.query_cells().rows(), setup.dim()};
    const Shape keys{setup.keys().rows(), setup.dim()};
    const Shape prefix{setup.prefix, setup.dim()};
    return {setup,
            {random(queries), random(keys), random(keys), random(queries), random(prefix),
             random(prefix)}};
  }
  bool on_cuda() { return ctx().device().is_cuda(); }

  // Against the definition in f64. For the gradients that takes the o of the call: do . o cancels
  // against weights, which makes the rounding of o visible in them.
  void expect_agreement(Call c) {
    SCOPED_TRACE(c.setup.name);
    Definition definition(c.setup, c.x, ctx().random());
    c.forward(ctx());
    Wanted want = definition.forward();
    expect_close(c.y.o.view(), want.o, 193);
    std::vector<double> lse = values_of(c.y.lse.view());
    ASSERT_EQ(lse.size(), want.lse.size());
    const std::vector<double> exact = want.lse;
    for (size_t i = 0; i < lse.size(); ++i) {
      ASSERT_EQ(std::isinf(lse[i]), std::isinf(want.lse[i])) << i;
      if (std::isinf(lse[i])) lse[i] = want.lse[i] = 0;  // inf - inf is no difference
    }
    expect_close(tensor_of(c.y.lse.shape(), c.y.lse.dtype(), lse).view(), want.lse, 193);
    definition.backward(values_of(c.y.o.view()), exact, want);
    c.backward(ctx());
    expect_close(c.y.dq.view(), want.dq, 193);
    expect_close(c.y.dk.view(), want.dk, 193);
    expect_close(c.y.dv.view(), want.dv, 193);
    // Sums of rounded weights: what they have lost is a rounding of the type, not of f32.
    const int64_t tokens = c.setup.query_cells().rows();
    for (auto [got, wanted] :
         {std::pair{&c.y.prefix_dk, &want.prefix_dk}, std::pair{&c.y.prefix_dv, &want.prefix_dv}})
      expect_close(tensor_of(got->shape(), c.x.q.dtype(), values_of(got->view())).view(), *wanted,
                   tokens);
  }
  // Calls test(dtype) for what the mode stores, and for the kernels that only 7.5 has.
  template <class Test>
  void for_each_type(Test&& test) {
    if (!on_cuda()) return test(dtype());
    for (const int capability : Capability::all())
      for (const DType type : {dtype(), DType::bf16, DType::f16}) {
        if (capability == 75 && type != DType::f16) continue;
        SCOPED_TRACE(cat(type, ", compute capability ", capability));
        const Capability chosen(capability);
        test(type);
      }
  }
};
INSTANTIATE_OP_TEST(AttentionMaskTest);

TEST_P(AttentionMaskTest, AgreesWithMatricesOfWhoSeesWhom) {
  for_each_type([&](DType type) {
    for (Case setup : setups()) {
      setup.heads = 1;
      Call c = call(setup);
      c.x = c.x.rounded(type);
      expect_agreement(std::move(c));
    }
  });
}

// Widths whose kernels differ: tiles of other sizes, rows that are not whole vectors.
TEST_P(AttentionMaskTest, AgreesAtEveryWidthAndWithDropout) {
  for_each_type([&](DType type) {
    for (const int64_t head_dim : {5, 32, 96, 128})
      for (Case setup : setups()) {
        if (setup.name != "causal, key bits, known, prefix of 40" &&
            setup.name != "known, prefix of 33" && setup.name != "key bits, whole tiles")
          continue;
        SCOPED_TRACE(cat("head_dim ", head_dim));
        setup.head_dim = head_dim;
        setup.dropout = 0.3f;
        Call c = call(setup);
        c.x = c.x.rounded(type);
        expect_agreement(std::move(c));
      }
  });
}

TEST_P(AttentionMaskTest, GradientsMatchFiniteDifferences) {
  if (dtype() != DType::f64) GTEST_SKIP() << "finite differences are taken in f64 only";
  std::vector<Case> all = {
      {.name = "key bits", .lengths = {3, 0, 5}, .marks = {1, 0, 1, 0, 0, 0, 0, 0}},
      {.name = "known", .lengths = {4, 1, 6}, .known = {2, 0, 0}},
      {.name = "causal", .lengths = {4, 1, 6}, .causal = true},
      {.name = "prefix", .lengths = {3, 0, 5}, .prefix = 3},
      {.name = "all",
       .lengths = {4, 1, 6},
       .marks = {1, 1, 0, 1, 1, 0, 1, 1, 1, 1, 1},
       .known = {2, 0, 3},
       .causal = true,
       .prefix = 2},
  };
  for (Case setup : all)
    for (const float dropout : {0.0f, 0.4f}) {
      SCOPED_TRACE(cat(setup.name, ", dropout ", dropout));
      setup.head_dim = 3;
      setup.dropout = dropout;
      Call c = call(setup);
      c.forward(ctx());
      c.backward(ctx());
      const Tensor gradients[] = {c.y.dq.clone(), c.y.dk.clone(), c.y.dv.clone(),
                                  c.y.prefix_dk.clone(), c.y.prefix_dv.clone()};
      const auto loss = [&] {
        c.forward(ctx());
        return dot(c.y.o.view(), c.x.dout.view());
      };
      Tensor* inputs[] = {&c.x.q, &c.x.k, &c.x.v, &c.x.prefix_k, &c.x.prefix_v};
      for (int i = 0; i < 5; ++i) expect_gradient(*inputs[i], loss, gradients[i].view());
    }
}

TEST_P(AttentionMaskTest, QueriesThatSeeNothingGiveZeros) {
  for_each_type([&](DType type) {
    for (const int64_t head_dim : {8, 64, 128})
      for (const bool known : {false, true}) {
        // Of the cell of 70 nobody sees anything; in the other one query 0 does not.
        Case setup{.name = "hidden", .lengths = {70, 40}, .head_dim = head_dim};
        setup.marks = striped({110}, 110, 0);
        std::fill(setup.marks.begin(), setup.marks.begin() + 71, uint8_t{0});
        setup.causal = true;
        if (known) setup.known = {0, 0};
        Call c = call(setup);
        c.x = c.x.rounded(type);
        c.forward(ctx());
        c.backward(ctx());
        const std::vector<double> lse = values_of(c.y.lse.view());
        for (size_t i = 0; i < lse.size(); ++i) ASSERT_EQ(lse[i] == -INFINITY, i < 2 * 71) << i;
        for (const Tensor* t : {&c.y.o, &c.y.dq, &c.y.dk, &c.y.dv}) {
          const std::vector<double> values = values_of(t->view());
          for (size_t i = 0; i < values.size(); ++i) {
            ASSERT_TRUE(std::isfinite(values[i])) << i;
            if (i < static_cast<size_t>(71 * setup.dim())) {
              ASSERT_EQ(values[i], 0) << i;
            }
          }
        }
      }
  });
}

void expect_same_rows(const Tensor& all, int32_t begin, const Tensor& part) {
  expect_same_bits(all.view().rows(begin, begin + part.dim(0)), part.view());
}

TEST_P(AttentionMaskTest, ABatchEqualsItsCellsOneByOne) {
  for_each_type([&](DType type) {
    for (Case setup : setups()) {
      // One of each rule, and all together.
      if (setup.name != "key bits" && setup.name != "known, prefix of 33" &&
          setup.name != "causal, key bits, known, prefix of 40" && setup.queries.empty())
        continue;
      SCOPED_TRACE(setup.name);
      setup.dropout = 0.2f;
      Call c = call(setup);
      c.x = c.x.rounded(type);
      c.forward(ctx());
      c.backward(ctx());
      const PackedCells queries = setup.query_cells(), keys = setup.keys();
      for (size_t cell = 0; cell < setup.lengths.size(); ++cell) {
        Call one = c.only(cell);
        one.forward(ctx());
        one.backward(ctx());
        expect_same_rows(c.y.o, queries.offsets[cell], one.y.o);
        expect_same_rows(c.y.lse, queries.offsets[cell], one.y.lse);
        expect_same_rows(c.y.dq, queries.offsets[cell], one.y.dq);
        expect_same_rows(c.y.dk, keys.offsets[cell], one.y.dk);
        expect_same_rows(c.y.dv, keys.offsets[cell], one.y.dv);
      }
    }
  });
}

// Gradients of the prefix add up over calls as they do over the cells of one call.
TEST_P(AttentionMaskTest, PrefixGradientsDoNotDependOnHowCellsAreGrouped) {
  for_each_type([&](DType type) {
    for (const int64_t head_dim : {24, 64}) {
      Case setup{.name = "prefix of 9",
                 .lengths = {33, 0, 140, 7},
                 .head_dim = head_dim,
                 .dropout = 0.2f,
                 .prefix = 9};
      Call c = call(setup);
      c.x = c.x.rounded(type);
      c.forward(ctx());
      c.backward(ctx());
      Tensor dk = Call::filled(c.x.prefix_k.shape(), c.sums(), 0);
      Tensor dv = Call::filled(c.x.prefix_k.shape(), c.sums(), 0);
      for (size_t cell = 0; cell < setup.lengths.size(); ++cell) {
        Call one = c.only(cell);
        one.forward(ctx());
        const PackedCells cells = one.setup.keys();
        attention_backward(ctx(), one.x.q.view(), one.x.k.view(), one.x.v.view(), one.y.o.view(),
                           one.y.lse.view(), one.x.dout.view(), cells.packing(), cells.packing(),
                           setup.heads, one.dropout(), {}, {}, {}, one.mask(), one.prefix(),
                           {.k = dk.view(), .v = dv.view()});
      }
      expect_same_bits(dk.view(), c.y.prefix_dk.view());
      expect_same_bits(dv.view(), c.y.prefix_dv.view());
    }
  });
}

TEST_P(AttentionMaskTest, UnwantedGradientsAreSkippedAndChangeNothing) {
  for_each_type([&](DType type) {
    Case setup{.name = "known, prefix of 9", .lengths = {3, 70}, .known = {1, 20}, .prefix = 9};
    Call c = call(setup);
    c.x = c.x.rounded(type);
    c.forward(ctx());
    c.backward(ctx());
    for (int wanted = 1; wanted < 31; ++wanted) {
      SCOPED_TRACE(cat("wanted ", wanted));
      Call other{c.setup, c.x.rounded(type)};
      other.y.o = c.y.o.clone();
      other.y.lse = c.y.lse.clone();
      other.backward(ctx(), wanted);
      const std::pair<const Tensor*, const Tensor*> pairs[] = {
          {&other.y.dq, &c.y.dq},
          {&other.y.dk, &c.y.dk},
          {&other.y.dv, &c.y.dv},
          {&other.y.prefix_dk, &c.y.prefix_dk},
          {&other.y.prefix_dv, &c.y.prefix_dv}};
      for (int i = 0; i < 5; ++i)
        if (wanted >> i & 1) expect_same_bits(pairs[i].first->view(), pairs[i].second->view());
    }
  });
}

// Memory of which some rows fault when they are touched: what must not be read shows as a crash.
class GuardedRows {
 public:
  GuardedRows(const Tensor& t, int64_t begin, int64_t end)
      : shape_(t.shape()), dtype_(t.dtype()), size_(static_cast<size_t>(t.nbytes())) {
    data_ = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    require(data_ != MAP_FAILED, "mmap of ", size_, " bytes failed");
    std::memcpy(data_, on_host(t.view()).view().data(), size_);
    const int64_t row = t.nbytes() / t.dim(0);
    require(row * begin % 4096 == 0 && row * end % 4096 == 0, "rows begin within a page");
    require(mprotect(static_cast<std::byte*>(data_) + row * begin,
                     static_cast<size_t>(row * (end - begin)), PROT_NONE) == 0,
            "mprotect failed");
  }
  ~GuardedRows() { munmap(data_, size_); }
  GuardedRows(const GuardedRows&) = delete;
  GuardedRows& operator=(const GuardedRows&) = delete;
  ConstTensorView view() const { return {data_, shape_, dtype_, test_device()}; }

 private:
  Shape shape_;
  DType dtype_;
  size_t size_;
  void* data_;
};

// When only the prefix has gradients, no key of a cell is looked at.
TEST_P(AttentionMaskTest, PrefixAloneReadsNoOtherKey) {
  if (on_cuda() && !kCudaEmulated) GTEST_SKIP() << "memory of a GPU cannot be guarded";
  for_each_type([&](DType type) {
    for (const int64_t head_dim : {16, 64, 128}) {
      Case setup{.name = "prefix of 40", .lengths = {64, 192}, .head_dim = head_dim, .prefix = 40};
      Call c = call(setup);
      c.x = c.x.rounded(type);
      c.forward(ctx());
      c.backward(ctx());
      const GuardedRows k(c.x.k, 0, 256), v(c.x.v, 0, 256);
      Tensor dk = Call::filled(c.x.prefix_k.shape(), c.sums(), 0);
      Tensor dv = Call::filled(c.x.prefix_k.shape(), c.sums(), 0);
      const PackedCells cells = setup.keys();
      attention_backward(ctx(), c.x.q.view(), k.view(), v.view(), c.y.o.view(), c.y.lse.view(),
                         c.x.dout.view(), cells.packing(), cells.packing(), setup.heads,
                         c.dropout(), {}, {}, {}, c.mask(), c.prefix(),
                         {.k = dk.view(), .v = dv.view()});
      expect_same_bits(dk.view(), c.y.prefix_dk.view());
      expect_same_bits(dv.view(), c.y.prefix_dv.view());
    }
  });
}

// Whole tiles whose key bits are 0 are not loaded by kernels.
TEST_P(AttentionMaskTest, TilesThatNobodySeesAreNotLoaded) {
  if (!on_cuda() || !kCudaEmulated)
    GTEST_SKIP() << "the CPU packs all keys, and memory of a GPU cannot be guarded";
  for_each_type([&](DType type) {
    Case setup{.name = "hidden tile", .lengths = {192}};
    setup.marks = striped(setup.lengths, 1, 0);
    std::fill(setup.marks.begin() + 64, setup.marks.begin() + 128, uint8_t{0});
    Call c = call(setup);
    c.x = c.x.rounded(type);
    c.forward(ctx());
    c.backward(ctx());
    const GuardedRows k(c.x.k, 64, 128), v(c.x.v, 64, 128);
    const PackedCells cells = setup.keys();
    Tensor o = c.filled(c.x.q.shape(), type, NAN), dq = c.filled(c.x.q.shape(), type, NAN);
    Tensor lse = c.filled(c.y.lse.shape(), c.sums(), NAN);
    attention(ctx(), c.x.q.view(), k.view(), v.view(), cells.packing(), cells.packing(),
              setup.heads, {}, o.view(), lse.view(), c.mask());
    attention_backward(ctx(), c.x.q.view(), k.view(), v.view(), c.y.o.view(), c.y.lse.view(),
                       c.x.dout.view(), cells.packing(), cells.packing(), setup.heads, {},
                       dq.view(), {}, {}, c.mask());
    expect_same_bits(o.view(), c.y.o.view());
    expect_same_bits(dq.view(), c.y.dq.view());
  });
}

// Counted in reads of shared memory: with causal order or half of the keys known, a warp works on
// the tiles that its rows see something of, and on no others. Of 512 tokens a warp owns 32 queries
// and walks 8 tiles of 64 keys in the forward pass, 16 rows and 16 steps of 32 in the backward
// pass.
TEST_P(AttentionMaskTest, WorkIsThatOfTheTilesThatAreSeen) {
  if (!on_cuda() || !kCudaEmulated) GTEST_SKIP() << "only the emulated device counts reads";
  const auto loads = [&](const Case& setup, int pass) {
    Call c = call(setup);
    c.x = c.x.rounded(DType::bf16);
    c.forward(ctx());
    // The last launch: that of the forward pass, of dq, of dk and dv.
    if (pass > 0) c.backward(ctx(), pass == 1 ? 1 : 6);
    int64_t sum = 0;
    for (const auto& site : gpu::emulator_options().last_report.ldmatrix) sum += site.loads;
    return sum;
  };
  Case plain{.name = "plain", .lengths = {512}, .heads = 1};
  Case half = plain, causal = plain, known = plain;
  half.marks = striped(plain.lengths, 64, 64);
  causal.causal = true;
  known.known = {256};
  for (int pass = 0; pass < 3; ++pass) {
    SCOPED_TRACE(cat("pass ", pass));
    const int64_t all = pass == 0 ? 16 * 8 : 32 * 16;
    // Causal order: 2 (1 + ... + 8) and 2 (1 + ... + 16). Known: half, and one on the diagonal for
    // each warp of the other half. They happen to agree.
    const int64_t seen = pass == 0 ? 72 : 272;
    const int64_t of_all = loads(plain, pass);
    const int64_t of_one = (of_all - loads(half, pass)) / (all / 2);
    ASSERT_GT(of_one, 0);
    EXPECT_EQ(of_all - loads(causal, pass), (all - seen) * of_one);
    EXPECT_EQ(of_all - loads(known, pass), (all - seen) * of_one);
  }
}

// A mask that hides nothing is no mask.
TEST_P(AttentionMaskTest, MasksThatHideNothingChangeNothing) {
  for_each_type([&](DType type) {
    Case setup{.name = "plain", .lengths = {65, 130}, .dropout = 0.2f};
    Call plain = call(setup);
    plain.x = plain.x.rounded(type);
    plain.forward(ctx());
    plain.backward(ctx());
    for (const bool bits : {true, false}) {
      Call c{setup, plain.x.rounded(type)};
      if (bits)
        c.setup.marks = striped(setup.lengths, 1, 0);
      else
        c.setup.known = {65, 130};
      c.forward(ctx());
      c.backward(ctx());
      // The fast path of the CPU sums in its own order.
      const bool same_path = on_cuda() || GetParam().reference;
      const std::pair<const Tensor*, const Tensor*> pairs[] = {{&c.y.o, &plain.y.o},
                                                               {&c.y.lse, &plain.y.lse},
                                                               {&c.y.dq, &plain.y.dq},
                                                               {&c.y.dk, &plain.y.dk},
                                                               {&c.y.dv, &plain.y.dv}};
      for (const auto& [got, want] : pairs) {
        if (same_path)
          expect_same_bits(got->view(), want->view());
        else
          expect_close(got->view(), want->view(), 130);
      }
    }
  });
}

TEST_P(AttentionMaskTest, SchedulingDoesNotChangeABit) {
  if (!kCudaEmulated || !on_cuda()) GTEST_SKIP() << "only the emulated device can be told an order";
  for_each_type([&](DType type) {
    for (const int64_t head_dim : {32, 64}) {
      Case setup{.name = "all",
                 .lengths = {70, 3},
                 .head_dim = head_dim,
                 .dropout = 0.2f,
                 .marks = striped({70, 3}, 9, 2),
                 .known = {20, 3},
                 .causal = true,
                 .prefix = 20};
      Call c = call(setup);
      c.x = c.x.rounded(type);
      c.forward(ctx());
      c.backward(ctx());
      for (const gpu::Order order : {gpu::Order::reverse, gpu::Order::random}) {
        Call other{setup, c.x.rounded(type)};
        gpu::emulator_options().order = order;
        other.forward(ctx());
        other.backward(ctx());
        gpu::emulator_options().order = gpu::Order::forward;
        const std::pair<const Tensor*, const Tensor*> pairs[] = {
            {&other.y.o, &c.y.o},
            {&other.y.lse, &c.y.lse},
            {&other.y.dq, &c.y.dq},
            {&other.y.dk, &c.y.dk},
            {&other.y.dv, &c.y.dv},
            {&other.y.prefix_dk, &c.y.prefix_dk},
            {&other.y.prefix_dv, &c.y.prefix_dv}};
        for (const auto& [got, want] : pairs) expect_same_bits(got->view(), want->view());
      }
    }
  });
}

TEST(AttentionMask, KeyBitsBeginEveryCellWithAWordOfItsOwn) {
  const PackedCells cells({3, 0, 65, 63, 1}, {});
  const Packing packing = Packing::over(cells.offsets);
  std::vector<uint8_t> marks(132, 0);
  for (const size_t seen : {0u, 2u, 3u, 67u, 68u, 130u, 131u}) marks[seen] = 1;
  const std::vector<int64_t> words = pack_key_bits(packing, marks);
  ASSERT_EQ(static_cast<int64_t>(words.size()), key_words(packing));
  const auto word = [&](int64_t cell, int64_t w) {
    return static_cast<uint64_t>(words[static_cast<size_t>(first_key_word(packing, cell) + w)]);
  };
  EXPECT_EQ(word(0, 0), 5u);
  EXPECT_EQ(word(2, 0), 1u);
  EXPECT_EQ(word(2, 1), 1u);
  EXPECT_EQ(word(3, 0), 1u | uint64_t{1} << 62);
  EXPECT_EQ(word(4, 0), 1u);
  expect_error("pack_key_bits: got 3 marks for 132 keys",
               [&] { pack_key_bits(packing, std::vector<uint8_t>(3)); });
}

TEST_P(AttentionMaskTest, ErrorsSayWhatWasWantedAndWhatCame) {
  Case setup{.name = "prefix", .lengths = {3, 4}, .head_dim = 8, .prefix = 2};
  Call c = call(setup);
  c.forward(ctx());
  const PackedCells cells = setup.keys();
  const auto run = [&](const AttentionMask& mask, const AttentionPrefix& prefix,
                       const AttentionPrefixGradient& gradient, const PackedCells& queries) {
    attention_backward(ctx(), c.x.q.view(), c.x.k.view(), c.x.v.view(), c.y.o.view(),
                       c.y.lse.view(), c.x.dout.view(), queries.packing(), cells.packing(), 2, {},
                       {}, {}, {}, mask, prefix, gradient);
  };
  const Tensor words = longs({0, 0, 0}), counts = ints({0, 0, 0});
  expect_error("key_bits must be [2], got [3]",
               [&] { run({.key_bits = words.view()}, {}, {}, cells); });
  expect_error("key_bits must be i64, got i32", [&] {
    const Tensor narrow = ints({0, 0});
    run({.key_bits = narrow.view()}, {}, {}, cells);
  });
  expect_error("known must be [2], got [3]", [&] { run({.known = counts.view()}, {}, {}, cells); });
  const PackedCells moved({4, 3}, {});
  expect_error("a mask of causal order needs as many queries as keys in every cell",
               [&] { run({.causal = true}, {}, {}, moved); });
  const Tensor two = ints({0, 0});
  expect_error("a mask of known keys needs as many queries as keys in every cell",
               [&] { run({.known = two.view()}, {}, {}, moved); });

  const Tensor narrow = zeros({2, 8}), tall = zeros({65, 16});
  expect_error("k of the prefix must be [2, 16], got [2, 8]",
               [&] { run({}, {.k = narrow.view(), .v = narrow.view()}, {}, cells); });
  expect_error("v of the prefix must be [2, 16], got [2, 8]",
               [&] { run({}, {.k = c.x.prefix_k.view(), .v = narrow.view()}, {}, cells); });
  expect_error("a prefix has k and v of at most 64 rows, got k [65, 16]",
               [&] { run({}, {.k = tall.view(), .v = tall.view()}, {}, cells); });
  expect_error("a prefix has k and v of at most 64 rows",
               [&] { run({}, {.k = {}, .v = c.x.prefix_v.view()}, {}, cells); });
  Tensor gradient = zeros({3, 16});
  expect_error("dk of the prefix must be [2, 16], got [3, 16]",
               [&] { run({}, c.prefix(), {.k = gradient.view()}, cells); });
  expect_error("dv of the prefix must be [0, 16], got [3, 16]",
               [&] { run({}, {}, {.v = gradient.view()}, cells); });
}

}  // namespace
}  // namespace scgraft
