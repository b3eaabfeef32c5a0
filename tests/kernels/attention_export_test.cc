// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention_export.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "kernels/attention.h"
#include "kernels/require_tensor.h"
#include "runtime/gpu/emulator.h"
#include "tests/kernels/capability.h"
#include "tests/kernels/packed_cells.h"

namespace scgraft {
namespace {

PackedCells cells_of(const std::vector<int32_t>& lengths) {
  return {lengths, std::vector<int64_t>(lengths.size())};
}

Tensor positions_of(Shape shape, const std::vector<int32_t>& values) {
  Tensor t(shape, DType::i32, test_device());
  copy(ints_of(values).view().reshape(shape), t.view());
  return t;
}

// Which keys queries see, as plain numbers (kernels/attention_mask.h).
struct Rules {
  std::string name = "no rule";
  std::vector<uint8_t> marks = {};  // of all keys; empty: no key bits
  std::vector<int32_t> known = {};  // of all cells; empty: no rule
  bool causal = false;
  int64_t prefix = 0;       // rows
  bool everywhere = false;  // tested with heads of all widths

  // Query i and key j of a cell whose keys begin at row `first` of all.
  bool sees(size_t cell, int64_t first, int64_t i, int64_t j) const {
    if (!marks.empty() && marks[static_cast<size_t>(first + j)] == 0) return false;
    if (!known.empty() && j >= known[cell] && i != j) return false;
    return !causal || j <= i;
  }
  Rules only(size_t cell, const PackedCells& keys) const {
    Rules one = *this;
    if (!marks.empty())
      one.marks.assign(marks.begin() + keys.offsets[cell], marks.begin() + keys.offsets[cell + 1]);
    if (!known.empty()) one.known = {known[cell]};
    return one;
  }
};

// Marks of keys: runs of `hidden` unseen ones after every `seen` seen ones, in every cell.
std::vector<uint8_t> striped(const std::vector<int32_t>& lengths, int seen, int hidden) {
  std::vector<uint8_t> marks;
  for (const int32_t length : lengths)
    for (int j = 0; j < length; ++j) marks.push_back(j % (seen + hidden) < seen ? 1 : 0);
  return marks;
}

// A forward pass and what is asked about it.
struct Pass {
  PackedCells queries, keys;
  int64_t heads;
  Tensor q, k;
  Rules rules;
  Tensor prefix_k, key_bits, known, lse;
  Tensor shown_k = {};  // k, but NaN where key bits hide a key

  Pass(Context& ctx, const std::vector<int32_t>& query_lengths,
       const std::vector<int32_t>& key_lengths, int64_t n_heads, int64_t head_dim, DType type,
       const Rules& of_pass = {})
      : queries(cells_of(query_lengths)),
        keys(cells_of(key_lengths)),
        heads(n_heads),
        q(random_values({queries.rows(), heads * head_dim}, type, 1)),
        k(random_values({keys.rows(), heads * head_dim}, type, 2)),
        rules(of_pass) {
    forward(ctx);
  }
  Pass(PackedCells of_queries, PackedCells of_keys, int64_t n_heads, Tensor queries_rows,
       Tensor key_rows, Context& ctx, const Rules& of_pass = {})
      : queries(std::move(of_queries)),
        keys(std::move(of_keys)),
        heads(n_heads),
        q(std::move(queries_rows)),
        k(std::move(key_rows)),
        rules(of_pass) {
    forward(ctx);
  }

  void forward(Context& ctx) {
    prefix_k = random_values({rules.prefix, q.dim(1)}, q.dtype(), 6);
    shown_k = on_test(k);
    if (!rules.marks.empty()) {
      const std::vector<int64_t> words = pack_key_bits(Packing::over(keys.offsets), rules.marks);
      Tensor host({static_cast<int64_t>(words.size())}, DType::i64);
      std::copy(words.begin(), words.end(), host.as<int64_t>());
      key_bits = host.to(test_device());
      std::vector<double> values = values_of(k.view());
      for (size_t row = 0; row < rules.marks.size(); ++row)
        if (rules.marks[row] == 0)
          std::fill_n(values.begin() + static_cast<int64_t>(row) * k.dim(1), k.dim(1),
                      std::nan(""));
      shown_k = tensor_of(k.shape(), k.dtype(), values);
    }
    if (!rules.known.empty()) known = positions_of({cells()}, rules.known);
    Tensor o(q.shape(), q.dtype(), test_device());
    lse = Tensor({queries.rows(), heads}, type(), test_device());
    attention(ctx, q.view(), k.view(), k.view(), queries.packing(), keys.packing(), heads, {},
              o.view(), lse.view(), mask(), prefix());
  }
  AttentionMask mask() const {
    AttentionMask m{.key_bits = {}, .known = {}, .causal = rules.causal};
    if (!rules.marks.empty()) m.key_bits = key_bits.view();
    if (!rules.known.empty()) m.known = known.view();
    return m;
  }
  AttentionPrefix prefix() const {
    if (rules.prefix == 0) return {};
    return {.k = prefix_k.view(), .v = prefix_k.view()};
  }
  DType type() const { return sum_type(q.dtype()); }
  int64_t cells() const { return static_cast<int64_t>(queries.ids.size()); }
  // Columns of attention_of_queries().
  int64_t columns() const { return keys.rows() + cells() * rules.prefix; }

  // One cell alone.
  Pass only(Context& ctx, size_t cell) const {
    const auto part = [&](const Tensor& t, const PackedCells& of) {
      return on_test(on_host(t.view().rows(of.offsets[cell], of.offsets[cell + 1])));
    };
    const auto alone = [&](const PackedCells& of) {
      return cells_of({of.offsets[cell + 1] - of.offsets[cell]});
    };
    return {alone(queries),        alone(keys), heads, part(q, queries), part(k, keys), ctx,
            rules.only(cell, keys)};
  }
  static Tensor on_test(const Tensor& t) {
    return tensor_of(t.shape(), t.dtype(), values_of(t.view()));
  }

  template <class Use>
  void with(Use&& use) const {
    const Packing of_queries = queries.packing(), of_keys = keys.packing();
    AttentionPrefix without_values = prefix();
    without_values.v = {};
    use(AttentionPass{q.view(), shown_k.view(), lse.view(), of_queries, of_keys, heads, mask(),
                      without_values});
  }
  static Tensor nans(Shape shape, DType dtype) {
    return tensor_of(shape, dtype,
                     std::vector<double>(static_cast<size_t>(shape.numel()), std::nan("")));
  }
  Tensor of_queries(Context& ctx, int64_t n, ConstTensorView rows) const {
    Tensor p = nans({n, heads, columns()}, type());
    with([&](const AttentionPass& pass) { attention_of_queries(ctx, pass, rows, p.view()); });
    return p;
  }
  Tensor share(Context& ctx) const {
    Tensor out = nans({queries.rows(), heads}, type());
    with([&](const AttentionPass& pass) { attention_prefix_share(ctx, pass, out.view()); });
    return out;
  }
  Tensor received(Context& ctx, ConstTensorView weight) const {
    Tensor out = nans({heads, keys.rows()}, type());
    with([&](const AttentionPass& pass) { attention_received(ctx, pass, weight, out.view()); });
    return out;
  }
  Tensor map(Context& ctx) const {
    Tensor out({queries.offsets[1], keys.offsets[1]}, type(), test_device());
    with([&](const AttentionPass& pass) { attention_map(ctx, pass, out.view()); });
    return out;
  }
  struct Top {
    Tensor p, keys;
  };
  Top top(Context& ctx, int64_t n) const {
    const Shape shape{queries.rows(), heads, n};
    Top out{nans(shape, type()), Tensor(shape, DType::i32, test_device())};
    with([&](const AttentionPass& pass) {
      attention_top_keys(ctx, pass, out.p.view(), out.keys.view());
    });
    return out;
  }
};

// p of the whole pass in f64, from its formula: the softmax of scaled products over the keys that a
// query sees, zeros for the others.
class Weights {
 public:
  explicit Weights(const Pass& pass)
      : pass_(pass),
        q_(values_of(pass.q.view())),
        k_(values_of(pass.k.view())),
        prefix_k_(values_of(pass.prefix_k.view())) {
    for (size_t cell = 0; cell + 1 < pass.keys.offsets.size(); ++cell) {
      first_.push_back(own_.size());
      for (int64_t head = 0; head < pass.heads; ++head)
        for (int64_t i = 0; i < queries(cell); ++i) add_row(cell, head, i);
    }
  }
  int64_t queries(size_t cell) const {
    return pass_.queries.offsets[cell + 1] - pass_.queries.offsets[cell];
  }
  int64_t keys(size_t cell) const {
    return pass_.keys.offsets[cell + 1] - pass_.keys.offsets[cell];
  }
  // Of the keys of the cell, and of the prefix.
  const std::vector<double>& row(size_t cell, int64_t head, int64_t i) const {
    return own_[at_row(cell, head, i)];
  }
  const std::vector<double>& prefix(size_t cell, int64_t head, int64_t i) const {
    return prefix_[at_row(cell, head, i)];
  }

 private:
  void add_row(size_t cell, int64_t head, int64_t i) {
    const int64_t first = pass_.keys.offsets[cell], query = pass_.queries.offsets[cell] + i;
    std::vector<double> own, prefix;
    double sum = 0;
    const auto weight = [&](const std::vector<double>& keys, int64_t key) {
      const int64_t dim = pass_.q.dim(1) / pass_.heads;
      double score = 0;
      for (int64_t d = 0; d < dim; ++d)
        score += at(q_, query, head * dim + d) * at(keys, key, head * dim + d);
      sum += std::exp(score / std::sqrt(static_cast<double>(dim)));
      return std::exp(score / std::sqrt(static_cast<double>(dim)));
    };
    for (int64_t x = 0; x < pass_.rules.prefix; ++x) prefix.push_back(weight(prefix_k_, x));
    for (int64_t j = 0; j < keys(cell); ++j)
      own.push_back(pass_.rules.sees(cell, first, i, j) ? weight(k_, first + j) : 0);
    for (std::vector<double>* row : {&own, &prefix})
      for (double& w : *row)
        if (w != 0) w /= sum;
    own_.push_back(own);
    prefix_.push_back(prefix);
  }
  size_t at_row(size_t cell, int64_t head, int64_t i) const {
    return first_[cell] + static_cast<size_t>(head * queries(cell) + i);
  }
  double at(const std::vector<double>& t, int64_t row, int64_t column) const {
    return t[static_cast<size_t>(row * pass_.q.dim(1) + column)];
  }
  const Pass& pass_;
  std::vector<double> q_, k_, prefix_k_;
  std::vector<std::vector<double>> own_, prefix_;
  std::vector<size_t> first_;
};

// Weights near those that are wanted; where none is wanted there is exactly none.
void expect_weights(ConstTensorView got, const std::vector<double>& want) {
  expect_close(got, want, 150);
  const std::vector<double> values = values_of(got);
  for (size_t i = 0; i < want.size(); ++i)
    if (want[i] == 0) {
      ASSERT_EQ(values[i], 0) << i;
    }
}

class AttentionExportTest : public OpTest {
 protected:
  Pass pass(const std::vector<int32_t>& queries, const std::vector<int32_t>& keys, int64_t heads,
            int64_t head_dim, const Rules& rules = {}) {
    return {ctx(), queries, keys, heads, head_dim, dtype(), rules};
  }
  bool on_cuda() { return ctx().device().is_cuda(); }
  // Calls test() for every storage type and, on the emulated device, for the tensor cores of 7.5.
  void for_each_type(const std::function<void()>& test) {
    for (const DType type : storage_types())
      for (const int capability : {86, 75}) {
        if (capability == 75 && !(on_cuda() && kCudaEmulated && size_of(type) == 2)) continue;
        SCOPED_TRACE(cat(type, ", compute capability ", capability));
        const Capability chosen(capability);
        store(type);
        test();
      }
    store(GetParam().dtype);
  }
  // Calls test(pass, its weights) for cells and widths at which kernels change, and for every rule.
  void for_each_pass(const std::function<void(const Pass&, const Weights&)>& test) {
    for_each_type([&] {
      for (const int64_t head_dim : {1, 8, 33, 40, 64, 96, 128}) {
        SCOPED_TRACE(cat("head_dim ", head_dim));
        const int32_t longest = head_dim == 64 ? 150 : 2;
        const Pass p = pass({0, 1, 17, 65, 3, longest}, {2, 1, 33, 65, 0, longest}, 2, head_dim);
        test(p, Weights(p));
      }
      for (const int64_t head_dim : {8, 33, 64, 96, 128}) {
        const std::vector<int32_t> keys = {0, 1, 17, 65, 3, head_dim == 64 ? 150 : 70};
        for (const Rules& rules : rules_of(keys)) {
          if (head_dim != 64 && !rules.everywhere) continue;
          SCOPED_TRACE(cat("head_dim ", head_dim, ", ", rules.name));
          const bool fewer = !rules.causal && rules.known.empty();
          const Pass p = pass(fewer ? std::vector<int32_t>{2, 1, 3, 20, 0, 33} : keys, keys,
                              rules.everywhere ? 2 : 1, head_dim, rules);
          test(p, Weights(p));
        }
      }
    });
  }
  // Every rule alone, and what can meet. Of six cells the last is the longest.
  static std::vector<Rules> rules_of(const std::vector<int32_t>& lengths) {
    // Stripes of 40 hide whole tiles of 32 keys. Of the last cell the first 64 keys are hidden, or
    // those after them; the cell of 3 as a whole.
    const std::vector<uint8_t> stripes = striped(lengths, 5, 40);
    std::vector<uint8_t> first = striped(lengths, 1, 0);
    std::fill(first.begin() + 83, first.begin() + 86, uint8_t{0});
    std::vector<uint8_t> second = first;
    std::fill(first.begin() + 86, first.begin() + 86 + 64, uint8_t{0});
    std::fill(second.begin() + 86 + 64, second.begin() + 86 + std::min(128, lengths[5]),
              uint8_t{0});
    const std::vector<int32_t> known = {3, 0, 10, 64, -1, 40};
    return {{.name = "key bits", .marks = stripes, .everywhere = true},
            {.name = "key bits, whole tiles", .marks = second},
            {.name = "known", .known = known},
            {.name = "causal", .causal = true},
            {.name = "prefix of 64", .prefix = 64},
            {.name = "key bits, prefix of 33", .marks = first, .prefix = 33},
            {.name = "nothing known, prefix of 1", .known = {0, 0, 0, 0, 0, 0}, .prefix = 1},
            {.name = "causal, prefix of 17", .causal = true, .prefix = 17},
            {.name = "causal, key bits, known", .marks = second, .known = known, .causal = true},
            {.name = "causal, key bits, known, prefix of 40",
             .marks = stripes,
             .known = known,
             .causal = true,
             .prefix = 40,
             .everywhere = true}};
  }
};
INSTANTIATE_OP_TEST(AttentionExportTest);

// One head of width 4, scores log 3 and 0 for the first query, 0 and 0 for the second.
Pass pass_by_hand(Context& ctx, DType type) {
  return {cells_of({2}),
          cells_of({2}),
          1,
          tensor_of({2, 4}, type, {2, 0, 0, 0, 0, 0, 0, 0}),
          tensor_of({2, 4}, type, {std::log(3.0), 0, 0, 0, 0, 0, 0, 0}),
          ctx};
}

TEST_P(AttentionExportTest, ByHand) {
  const Pass p = pass_by_hand(ctx(), dtype());
  expect_close(p.of_queries(ctx(), 1, {}).view(), {0.75, 0.25}, 4);
  const Tensor rows = positions_of({1, 3}, {1, 0, 2});
  expect_close(p.of_queries(ctx(), 3, rows.view()).view(), {0.5, 0.5, 0.75, 0.25, 0, 0}, 4);
  expect_close(p.received(ctx(), {}).view(), {0.625, 0.375}, 4);
  const Tensor weight = tensor({2}, {4, -2});
  expect_close(p.received(ctx(), weight.view()).view(), {2, 0}, 4);
  expect_close(p.map(ctx()).view(), {0.75, 0.25, 0.5, 0.5}, 4);
  const Pass::Top top = p.top(ctx(), 3);
  expect_close(top.p.view(), {0.75, 0.25, 0, 0.5, 0.5, 0}, 4);
  EXPECT_EQ(values_of(top.keys.view()), (std::vector<double>{0, 1, -1, 0, 1, -1}));
}

// The same cell behind a prefix key that scores log 4 and 0; the second key hidden; causal order;
// and no key at all.
TEST_P(AttentionExportTest, ByHandWithRules) {
  const Pass plain = pass_by_hand(ctx(), dtype());
  const Packing cells = plain.queries.packing();
  const Tensor prefix_k = tensor({1, 4}, {std::log(4.0), 0, 0, 0});
  const AttentionPrefix prefix{.k = prefix_k.view(), .v = prefix_k.view()};
  const auto check = [&](const AttentionMask& mask, bool behind_prefix,
                         const std::vector<double>& listed, const std::vector<double>& share,
                         const std::vector<double>& map, const std::vector<double>& keys) {
    const AttentionPrefix used = behind_prefix ? prefix : AttentionPrefix{};
    Tensor o = zeros({2, 4}), lse = zeros({2, 1});
    attention(ctx(), plain.q.view(), plain.k.view(), plain.k.view(), cells, cells, 1, {}, o.view(),
              lse.view(), mask, used);
    const AttentionPass pass{
        plain.q.view(), plain.k.view(), lse.view(), cells, cells, 1, mask, used};
    const Tensor rows = positions_of({1, 2}, {0, 1});
    Tensor p = zeros({2, 1, behind_prefix ? 3 : 2}), of_prefix = zeros({2, 1}), sum = zeros({2, 2});
    Tensor top = zeros({2, 1, 2}), top_keys = positions_of({2, 1, 2}, {9, 9, 9, 9});
    attention_of_queries(ctx(), pass, rows.view(), p.view());
    expect_close(p.view(), listed, 4);
    attention_prefix_share(ctx(), pass, of_prefix.view());
    expect_close(of_prefix.view(), share, 4);
    attention_map(ctx(), pass, sum.view());
    expect_close(sum.view(), map, 4);
    attention_top_keys(ctx(), pass, top.view(), top_keys.view());
    EXPECT_EQ(values_of(top_keys.view()), keys);
  };
  check({}, true, {0.5, 0.375, 0.125, 1. / 3, 1. / 3, 1. / 3}, {0.5, 1. / 3},
        {0.375, 0.125, 1. / 3, 1. / 3}, {0, 1, 0, 1});
  const Tensor first_only = longs({1}), none = longs({0});
  check({.key_bits = first_only.view()}, false, {1, 0, 1, 0}, {0, 0}, {1, 0, 1, 0}, {0, -1, 0, -1});
  check({.key_bits = first_only.view()}, true, {4. / 7, 3. / 7, 0, 0.5, 0.5, 0}, {4. / 7, 0.5},
        {3. / 7, 0, 0.5, 0}, {0, -1, 0, -1});
  check({.causal = true}, false, {1, 0, 0.5, 0.5}, {0, 0}, {1, 0, 0.5, 0.5}, {0, -1, 0, 1});
  const Tensor nothing = positions_of({1}, {0});  // is known
  check({.known = nothing.view()}, false, {1, 0, 0, 1}, {0, 0}, {1, 0, 0, 1}, {0, -1, 1, -1});
  check({.key_bits = none.view()}, false, {0, 0, 0, 0}, {0, 0}, {0, 0, 0, 0}, {-1, -1, -1, -1});
  check({.key_bits = none.view()}, true, {1, 0, 0, 1, 0, 0}, {1, 1}, {0, 0, 0, 0},
        {-1, -1, -1, -1});
}

TEST_P(AttentionExportTest, QueriesAndPrefixShareAgreeWithTheDefinition) {
  for_each_pass([&](const Pass& p, const Weights& weights) {
    // The first, the last, one twice, and two that are not there.
    std::vector<int32_t> positions;
    for (size_t cell = 0; cell < 6; ++cell) {
      const auto n = static_cast<int32_t>(weights.queries(cell));
      for (const int32_t i : {0, n - 1, 2, 2, n, -1}) positions.push_back(i);
    }
    const Tensor rows = positions_of({6, 6}, positions);
    const Tensor got = p.of_queries(ctx(), 6, rows.view());
    std::vector<double> want;
    for (size_t r = 0; r < 6; ++r)
      for (int64_t head = 0; head < p.heads; ++head)
        for (size_t cell = 0; cell < 6; ++cell) {
          const int32_t i = positions[cell * 6 + r];
          if (0 <= i && i < weights.queries(cell)) {
            const std::vector<double>& prefix = weights.prefix(cell, head, i);
            const std::vector<double>& own = weights.row(cell, head, i);
            want.insert(want.end(), prefix.begin(), prefix.end());
            want.insert(want.end(), own.begin(), own.end());
          } else {
            want.insert(want.end(), static_cast<size_t>(p.rules.prefix + weights.keys(cell)), 0.0);
          }
        }
    expect_weights(got.view(), want);
    // Without a list: query 0.
    want.resize(static_cast<size_t>(p.heads * p.columns()));
    expect_weights(p.of_queries(ctx(), 1, {}).view(), want);

    std::vector<double> share;
    for (size_t cell = 0; cell < 6; ++cell)
      for (int64_t i = 0; i < weights.queries(cell); ++i)
        for (int64_t head = 0; head < p.heads; ++head) {
          const std::vector<double>& row = weights.prefix(cell, head, i);
          share.push_back(std::accumulate(row.begin(), row.end(), 0.0));
        }
    expect_weights(p.share(ctx()).view(), share);
  });
}

TEST_P(AttentionExportTest, ReceivedAgreesWithTheDefinition) {
  for_each_pass([&](const Pass& p, const Weights& weights) {
    const Tensor of_rows = random_values({p.queries.rows()}, p.type(), 3);
    const Tensor of_heads = random_values({p.queries.rows(), p.heads}, p.type(), 4);
    const std::vector<double> row_values = values_of(of_rows.view());
    const std::vector<double> head_values = values_of(of_heads.view());
    const auto check = [&](ConstTensorView weight, auto&& w) {
      std::vector<double> want;
      for (int64_t head = 0; head < p.heads; ++head)
        for (size_t cell = 0; cell < 6; ++cell)
          for (int64_t j = 0; j < weights.keys(cell); ++j) {
            double sum = 0;
            for (int64_t i = 0; i < weights.queries(cell); ++i)
              sum += w(cell, p.queries.offsets[cell] + i, head) *
                     weights.row(cell, head, i)[static_cast<size_t>(j)];
            want.push_back(sum);
          }
      expect_weights(p.received(ctx(), weight).view(), want);
    };
    check({}, [&](size_t cell, int64_t, int64_t) {
      return 1 / static_cast<double>(weights.queries(cell));
    });
    check(of_rows.view(),
          [&](size_t, int64_t row, int64_t) { return row_values[static_cast<size_t>(row)]; });
    check(of_heads.view(), [&](size_t, int64_t row, int64_t head) {
      return head_values[static_cast<size_t>(row * p.heads + head)];
    });
  });
}

TEST_P(AttentionExportTest, MapAgreesWithTheDefinition) {
  const auto check = [&](const Pass& p) {
    const Weights weights(p);
    const int64_t n_queries = weights.queries(0), n_keys = weights.keys(0);
    std::vector<double> want(static_cast<size_t>(n_queries * n_keys));
    for (size_t cell = 0; cell < static_cast<size_t>(p.cells()); ++cell)
      for (int64_t head = 0; head < p.heads; ++head)
        for (int64_t i = 0; i < n_queries; ++i)
          for (int64_t j = 0; j < n_keys; ++j)
            want[static_cast<size_t>(i * n_keys + j)] +=
                weights.row(cell, head, i)[static_cast<size_t>(j)];
    expect_weights(p.map(ctx()).view(), want);
  };
  for_each_type([&] {
    for (const int64_t head_dim : {1, 8, 33, 40, 64, 96, 128})
      for (const auto& [n_queries, n_keys] :
           {std::pair{1, 1}, {3, 33}, {65, 64}, {head_dim == 64 ? 130 : 2, 70}}) {
        SCOPED_TRACE(cat("head_dim ", head_dim, ", ", n_queries, " x ", n_keys));
        check(pass({n_queries, n_queries, n_queries}, {n_keys, n_keys, n_keys}, 2, head_dim));
      }
    // Cells in which the same query sees other keys, one of them none of a tile.
    for (const int64_t head_dim : {8, 33, 64, 96, 128}) {
      const std::vector<int32_t> cells(4, 70), wide(4, 140);
      const std::vector<int32_t> known = {0, 70, 20, 64}, wide_known = {0, 140, 3, 128};
      std::vector<uint8_t> marks = striped(cells, 5, 40), far = striped(wide, 1, 0);
      std::fill(far.begin() + 140, far.begin() + 204, uint8_t{0});
      std::fill(far.begin() + 280 + 64, far.begin() + 280 + 128, uint8_t{0});
      std::fill(far.begin() + 420, far.end(), uint8_t{0});
      const Rules all[] = {{.name = "key bits", .marks = marks, .everywhere = true},
                           {.name = "known", .known = known},
                           {.name = "causal", .causal = true},
                           {.name = "prefix of 3", .prefix = 3},
                           {.name = "causal, key bits, known, prefix of 40",
                            .marks = marks,
                            .known = known,
                            .causal = true,
                            .prefix = 40,
                            .everywhere = true}};
      for (const Rules& rules : all) {
        if (head_dim != 64 && !rules.everywhere) continue;
        SCOPED_TRACE(cat("head_dim ", head_dim, ", ", rules.name));
        check(pass(cells, cells, 2, head_dim, rules));
      }
      if (head_dim != 64) continue;
      check(pass(wide, wide, 1, head_dim, {.name = "whole tiles", .marks = far}));
      check(pass({5, 5, 5, 5}, wide, 1, head_dim, {.name = "few queries", .marks = far}));
      check(pass(wide, wide, 1, head_dim, {.name = "known", .known = wide_known, .prefix = 2}));
      check(pass(wide, wide, 1, head_dim, {.name = "causal", .causal = true}));
    }
  });
}

// Weights in falling order; each belongs to the key that is named; keys are named once; and the
// weights are the largest ones. Near ties may be named in either order.
TEST_P(AttentionExportTest, TopKeysAgreeWithTheDefinition) {
  for_each_pass([&](const Pass& p, const Weights& weights) {
    const bool ruled = p.mask().any() || p.rules.prefix > 0;
    for (const int64_t n : ruled ? std::vector<int64_t>{20} : std::vector<int64_t>{1, 5, 32}) {
      SCOPED_TRACE(cat("n ", n));
      const Pass::Top top = p.top(ctx(), n);
      const std::vector<double> got = values_of(top.p.view()), keys = values_of(top.keys.view());
      std::vector<double> largest, named;
      size_t at = 0;
      for (size_t cell = 0; cell < 6; ++cell)
        for (int64_t i = 0; i < weights.queries(cell); ++i)
          for (int64_t head = 0; head < p.heads; ++head, at += static_cast<size_t>(n)) {
            const std::vector<double>& row = weights.row(cell, head, i);
            std::vector<double> sorted = row;
            std::sort(sorted.rbegin(), sorted.rend());
            sorted.resize(static_cast<size_t>(n));
            largest.insert(largest.end(), sorted.begin(), sorted.end());
            std::vector<bool> seen(row.size());
            const auto visible = static_cast<size_t>(
                std::count_if(row.begin(), row.end(), [](double w) { return w > 0; }));
            for (size_t r = 0; r < static_cast<size_t>(n); ++r) {
              if (r >= visible) {
                ASSERT_EQ(keys[at + r], -1);
                named.push_back(0);
                continue;
              }
              const auto key = static_cast<size_t>(keys[at + r]);
              ASSERT_LT(key, row.size());
              ASSERT_FALSE(seen[key]);
              ASSERT_GT(row[key], 0);  // the query sees it
              seen[key] = true;
              named.push_back(row[key]);
              if (r > 0) {
                ASSERT_LE(got[at + r], got[at + r - 1]);
              }
            }
          }
      expect_weights(top.p.view(), largest);
      expect_weights(top.p.view(), named);
    }
  });
}

// Every key twice, so that every score is there twice; and one query that scores all keys alike.
TEST_P(AttentionExportTest, OfEqualScoresTheLowerKeyComesFirst) {
  for_each_type([&] {
    for (const int64_t head_dim : {33, 64}) {
      SCOPED_TRACE(cat("head_dim ", head_dim));
      const Tensor half = random_values({50, head_dim}, dtype(), 7);
      std::vector<double> keys = values_of(half.view()), queries = keys;
      keys.insert(keys.end(), queries.begin(), queries.end());
      std::fill_n(queries.begin(), head_dim, 0.0);
      const Pass p(cells_of({50}), cells_of({100}), 1, tensor_of({50, head_dim}, dtype(), queries),
                   tensor_of({100, head_dim}, dtype(), keys), ctx());
      const std::vector<double> got = values_of(p.top(ctx(), 32).keys.view());
      for (size_t r = 0; r < 32; ++r) ASSERT_EQ(got[r], static_cast<double>(r));
      for (size_t i = 1; i < 50; ++i)
        for (size_t r = 0; r < 32; r += 2) {
          ASSERT_LT(got[i * 32 + r], 50);
          ASSERT_EQ(got[i * 32 + r + 1], got[i * 32 + r] + 50) << i << ' ' << r;
        }
    }
  });
}

// Scores that rise make every key a new best one, scores that fall none after the first n.
TEST_P(AttentionExportTest, TopKeysOfSortedScores) {
  for_each_type([&] {
    std::vector<double> keys(130 * 64);
    for (size_t j = 0; j < 130; ++j) keys[j * 64] = static_cast<double>(j) / 16;
    std::vector<double> queries(2 * 64);
    queries[0] = 4;
    queries[64] = -4;
    const Pass p(cells_of({2}), cells_of({130}), 1, tensor_of({2, 64}, dtype(), queries),
                 tensor_of({130, 64}, dtype(), keys), ctx());
    const std::vector<double> got = values_of(p.top(ctx(), 20).keys.view());
    for (size_t r = 0; r < 20; ++r) {
      ASSERT_EQ(got[r], static_cast<double>(129 - r));
      ASSERT_EQ(got[20 + r], static_cast<double>(r));
    }
  });
}

// What the modes say about one pass fits together, and adds up to 1 for every query.
TEST_P(AttentionExportTest, ModesAgreeWithEachOther) {
  const std::vector<int32_t> cells = {30, 30};
  const Rules every_rule{.name = "every rule",
                         .marks = striped(cells, 7, 2),
                         .known = {12, 0},
                         .causal = true,
                         .prefix = 9};
  for_each_type([&] {
    for (const Rules& rules : {Rules{}, every_rule}) {
      SCOPED_TRACE(rules.name);
      const Pass p = pass(cells, cells, 3, 64, rules);
      std::vector<int32_t> all;
      for (int32_t cell = 0; cell < 2; ++cell)
        for (int32_t i = 0; i < 30; ++i) all.push_back(i);
      const Tensor rows = positions_of({2, 30}, all);
      const std::vector<double> w = values_of(p.of_queries(ctx(), 30, rows.view()).view());
      const std::vector<double> top = values_of(p.top(ctx(), 32).p.view());
      const auto prefix = static_cast<size_t>(rules.prefix), width = prefix + 30;
      std::vector<double> received(3 * 60), map(30 * 30), share(60 * 3), of_top(60 * 3);
      for (size_t i = 0; i < 30; ++i)
        for (size_t head = 0; head < 3; ++head)
          for (size_t cell = 0; cell < 2; ++cell) {
            double sum = 0;
            for (size_t column = 0; column < width; ++column) {
              const double p_ij = w[((i * 3 + head) * 2 + cell) * width + column];
              sum += p_ij;
              if (column < prefix) {
                share[(cell * 30 + i) * 3 + head] += p_ij;
                continue;
              }
              received[head * 60 + cell * 30 + column - prefix] += p_ij / 30;
              map[i * 30 + column - prefix] += p_ij;
              of_top[(cell * 30 + i) * 3 + head] += p_ij;
            }
            EXPECT_NEAR(sum, 1, 1e-4);
          }
      expect_close(p.received(ctx(), {}).view(), received, 150);
      expect_close(p.map(ctx()).view(), map, 150);
      expect_close(p.share(ctx()).view(), share, 150);
      for (size_t row = 0; row < 180; ++row)  // 32 keys are all of them
        EXPECT_NEAR(std::accumulate(top.begin() + static_cast<int64_t>(row) * 32,
                                    top.begin() + static_cast<int64_t>(row + 1) * 32, 0.0),
                    of_top[row], 1e-4);
    }
  });
}

TEST_P(AttentionExportTest, CuttingTheBatchBetweenCellsChangesNothing) {
  const Rules every_rule{.name = "every rule",
                         .marks = striped({33, 70, 80}, 30, 50),
                         .known = {0, 40, 77},
                         .causal = true,
                         .prefix = 9};
  for_each_type([&] {
    for (const int64_t head_dim : {33, 64})
      for (const Rules& rules : {Rules{}, every_rule}) {
        SCOPED_TRACE(cat("head_dim ", head_dim, ", ", rules.name));
        const int32_t last = rules.causal ? 80 : 5;  // queries of the last cell
        const Pass all = pass({33, 70, last}, {33, 70, 80}, 2, head_dim, rules);
        const Tensor rows = positions_of({3, 2}, {4, 0, 4, 0, 4, 0});
        const Tensor own_rows = positions_of({1, 2}, {4, 0});
        const Tensor weight = random_values({all.queries.rows()}, all.type(), 5);
        const Tensor listed = on_host(all.of_queries(ctx(), 2, rows.view()).view());
        const Tensor received = on_host(all.received(ctx(), weight.view()).view());
        const Tensor share = on_host(all.share(ctx()).view());
        const Pass::Top top = all.top(ctx(), 8);
        for (size_t cell = 0; cell < 3; ++cell) {
          const Pass one = all.only(ctx(), cell);
          const int32_t begin = all.queries.offsets[cell], end = all.queries.offsets[cell + 1];
          // Columns of this cell, of each row of a tensor that has `extra` columns per cell beside
          // those of keys.
          const auto columns = [&](const Tensor& t, int64_t extra) {
            const std::vector<double> values = values_of(t.view());
            const int64_t width = all.keys.rows() + 3 * extra;
            const auto nth = static_cast<int64_t>(cell);
            std::vector<double> cut;
            for (int64_t row = 0; row < t.numel() / width; ++row)
              for (int64_t j = all.keys.offsets[cell] + nth * extra;
                   j < all.keys.offsets[cell + 1] + (nth + 1) * extra; ++j)
                cut.push_back(values[static_cast<size_t>(row * width + j)]);
            return cut;
          };
          EXPECT_EQ(values_of(one.of_queries(ctx(), 2, own_rows.view()).view()),
                    columns(listed, rules.prefix));
          EXPECT_EQ(values_of(one.received(ctx(), weight.view().rows(begin, end)).view()),
                    columns(received, 0));
          expect_same_bits(one.share(ctx()).view(), share.view().rows(begin, end));
          const Pass::Top own = one.top(ctx(), 8);
          expect_same_bits(own.p.view(), top.p.view().rows(begin, end));
          expect_same_bits(own.keys.view(), top.keys.view().rows(begin, end));
        }
        // The map goes on where the batch before it ended.
        Rules of_map = rules;
        if (rules.causal) of_map.marks = striped({70, 70, 70}, 30, 50);
        const int32_t n_keys = rules.causal ? 70 : 40;
        const Pass equal = pass({70, 70, 70}, {n_keys, n_keys, n_keys}, 2, head_dim, of_map);
        const Tensor whole = equal.map(ctx());
        Tensor parts({70, n_keys}, equal.type(), test_device());
        for (size_t cell = 0; cell < 3; ++cell)
          equal.only(ctx(), cell).with([&](const AttentionPass& pass) {
            attention_map(ctx(), pass, parts.view());
          });
        expect_same_bits(parts.view(), whole.view());
      }
  });
}

TEST_P(AttentionExportTest, ThreadsAndSchedulingChangeNothing) {
  const std::vector<int32_t> cells = {70, 70};
  const Rules every_rule{.name = "every rule",
                         .marks = striped(cells, 7, 2),
                         .known = {12, 66},
                         .causal = true,
                         .prefix = 9};
  for_each_type([&] {
    for (const Rules& rules : {Rules{}, every_rule}) {
      SCOPED_TRACE(rules.name);
      const Pass p = pass(rules.causal ? cells : std::vector<int32_t>{40, 40}, cells, 2, 64, rules);
      const auto run = [&](Context& context) {
        std::vector<Tensor> out;
        out.push_back(p.of_queries(context, 1, {}));
        out.push_back(p.share(context));
        out.push_back(p.received(context, {}));
        out.push_back(p.map(context));
        Pass::Top top = p.top(context, 8);
        out.push_back(std::move(top.p));
        out.push_back(std::move(top.keys));
        EXPECT_EQ(context.scratch().used(), 0);
        return out;
      };
      const std::vector<Tensor> want = run(ctx());
      const auto check = [&](const std::vector<Tensor>& got) {
        for (size_t i = 0; i < want.size(); ++i) expect_same_bits(got[i].view(), want[i].view());
      };
      for (const int threads : {1, 5}) {
        Context other(test_device(), {.threads = threads, .reference = ctx().reference()});
        check(run(other));
      }
      if constexpr (kCudaEmulated) {
        for (const gpu::Order order : {gpu::Order::reverse, gpu::Order::random}) {
          gpu::emulator_options().order = order;
          check(run(ctx()));
          gpu::emulator_options().order = gpu::Order::forward;
        }
      }
    }
  });
}

// What lies beside a cell is another cell: nothing of it may be touched.
TEST_P(AttentionExportTest, NanStaysInItsCell) {
  for_each_type([&] {
    for (const int64_t head_dim : {33, 64}) {
      const Pass clean = pass({20, 20, 20}, {20, 20, 20}, 1, head_dim);
      const auto spoiled = [&](const Tensor& t) {
        std::vector<double> values = values_of(t.view());
        std::fill(values.begin() + 20 * head_dim, values.begin() + 40 * head_dim, std::nan(""));
        return tensor_of(t.shape(), t.dtype(), values);
      };
      const Pass p(cells_of({20, 20, 20}), cells_of({20, 20, 20}), 1, spoiled(clean.q),
                   spoiled(clean.k), ctx());
      const auto check = [&](ConstTensorView view, size_t per_token) {
        const std::vector<double> values = values_of(view);
        for (size_t i = 0; i < values.size(); ++i)
          ASSERT_EQ(std::isnan(values[i]), i / per_token / 20 == 1) << i;
      };
      check(p.of_queries(ctx(), 1, {}).view(), 1);
      check(p.received(ctx(), {}).view(), 1);
      check(p.top(ctx(), 4).p.view(), 4);
    }
  });
}

TEST_P(AttentionExportTest, NoCellsAndNoQueriesAreNoWork) {
  const Pass none = pass({}, {}, 2, 8);
  EXPECT_EQ(none.received(ctx(), {}).numel(), 0);
  EXPECT_EQ(none.top(ctx(), 4).p.numel(), 0);
  EXPECT_EQ(none.of_queries(ctx(), 1, {}).numel(), 0);
  EXPECT_EQ(none.share(ctx()).numel(), 0);
  const Pass keys_only = pass({0, 0}, {3, 2}, 1, 8);
  expect_close(keys_only.received(ctx(), {}).view(), {0, 0, 0, 0, 0});
  expect_close(keys_only.of_queries(ctx(), 1, {}).view(), {0, 0, 0, 0, 0});
  const Pass queries_only = pass({2}, {0}, 1, 8);
  const Pass::Top top = queries_only.top(ctx(), 2);
  expect_close(top.p.view(), {0, 0, 0, 0});
  EXPECT_EQ(values_of(top.keys.view()), (std::vector<double>{-1, -1, -1, -1}));
  const Pass prefix_only = pass({1}, {0}, 1, 8, {.prefix = 2});
  expect_close(prefix_only.share(ctx()).view(), {1}, 4);
  EXPECT_EQ(prefix_only.of_queries(ctx(), 1, {}).numel(), 2);
  expect_close(prefix_only.top(ctx(), 1).p.view(), {0});
}

TEST_P(AttentionExportTest, F32FitsTheSharedMemoryOfEveryDevice) {
  const Capability smallest(75);
  for (const int64_t head_dim : {32, 64, 128}) {
    const Pass p = pass({3}, {3}, 1, head_dim);
    p.received(ctx(), {});
    p.map(ctx());
    p.top(ctx(), 2);
  }
}

TEST_P(AttentionExportTest, TilesAreReadWithoutBankConflicts) {
  if (!on_cuda() || !kCudaEmulated) GTEST_SKIP() << "only the emulated device counts them";
  for_each_type([&] {
    if (size_of(dtype()) == 4) return;
    for (const int64_t head_dim : {32, 64, 96, 128}) {
      SCOPED_TRACE(cat("head_dim ", head_dim));
      const auto extra = [] { return gpu::emulator_options().last_report.extra_phases(); };
      const Pass p = pass({70}, {70}, 1, head_dim);
      p.received(ctx(), {});
      EXPECT_EQ(extra(), 0);
      p.map(ctx());
      EXPECT_EQ(extra(), 0);
      p.top(ctx(), 8);
      EXPECT_EQ(extra(), 0);
    }
  });
}

// Counted in reads of shared memory: half of the keys hidden in whole tiles is half of the work,
// and so is causal order but for the tiles of the diagonal.
TEST_P(AttentionExportTest, WorkIsThatOfTheTilesThatAreSeen) {
  if (!on_cuda() || !kCudaEmulated) GTEST_SKIP() << "only the emulated device counts reads";
  store(DType::bf16);
  const auto loads = [] {
    int64_t sum = 0;
    for (const auto& site : gpu::emulator_options().last_report.ldmatrix) sum += site.loads;
    return sum;
  };
  const std::vector<int32_t> cells = {512};
  const auto of_modes = [&](const Rules& rules) {
    const Pass p = pass(cells, cells, 1, 64, rules);
    std::vector<int64_t> counts;
    p.received(ctx(), {});
    counts.push_back(loads());
    p.map(ctx());
    counts.push_back(loads());
    p.top(ctx(), 4);
    counts.push_back(loads());
    return counts;
  };
  const std::vector<int64_t> all = of_modes({});
  const std::vector<int64_t> half = of_modes({.marks = striped(cells, 128, 128)});
  const std::vector<int64_t> causal = of_modes({.causal = true});
  for (size_t mode = 0; mode < 3; ++mode) {
    SCOPED_TRACE(cat("mode ", mode));
    ASSERT_GT(all[mode], 0);
    EXPECT_EQ(2 * half[mode], all[mode]);
    EXPECT_LT(causal[mode], all[mode] * 2 / 3);
  }
  store(GetParam().dtype);
}

TEST_P(AttentionExportTest, ErrorsSayWhatWasWantedAndWhatCame) {
  const Pass p = pass({3, 4}, {3, 4}, 2, 8);
  const Tensor rows = positions_of({3, 1}, {0, 0, 0});
  expect_error("attention_of_queries: rows must be [cells, n] with 2 cells, got [3, 1]",
               [&] { p.of_queries(ctx(), 1, rows.view()); });
  expect_error("attention_of_queries: p must be [1, 2, 7], got [2, 2, 7]",
               [&] { p.of_queries(ctx(), 2, {}); });
  const Tensor weight = zeros({6});
  expect_error("attention_received: weight must be [7], got [6]",
               [&] { p.received(ctx(), weight.view()); });
  expect_error(
      "cells of one map must have the same genes in the same order, but cell 1 has 4 "
      "queries and 4 keys, cell 0 has 3 and 3",
      [&] { p.map(ctx()); });
  expect_error("attention_top_keys: p must be [query tokens, heads, n] with 1 <= n <= 32, got",
               [&] { p.top(ctx(), 33); });
  const Packing cells = p.keys.packing();
  Tensor out = zeros({2, 7});
  const auto received = [&](ConstTensorView q, ConstTensorView k, ConstTensorView lse,
                            const Packing& queries, int64_t heads) {
    attention_received(ctx(), {q, k, lse, queries, cells, heads}, {}, out.view());
  };
  const Tensor short_k = zeros({6, 16});
  expect_error("attention_received: k must be [7, 16], got [6, 16]",
               [&] { received(p.q.view(), short_k.view(), p.lse.view(), cells, 2); });
  expect_error("q must be [query tokens, heads * head_dim], got [7, 16] with 3 heads",
               [&] { received(p.q.view(), p.k.view(), p.lse.view(), cells, 3); });
  expect_error("lse must be [7, 2], got [7, 16]",
               [&] { received(p.q.view(), p.k.view(), p.q.view(), cells, 2); });
  const PackedCells one = cells_of({7});
  const Packing other = one.packing();
  expect_error("packings of the same cells, got 2 and 3 offsets",
               [&] { received(p.q.view(), p.k.view(), p.lse.view(), other, 2); });
  const auto with_rules = [&](const AttentionMask& mask, const AttentionPrefix& prefix) {
    attention_received(ctx(), {p.q.view(), p.k.view(), p.lse.view(), cells, cells, 2, mask, prefix},
                       {}, out.view());
  };
  const Tensor words = longs({0, 0, 0}), counts = positions_of({3}, {0, 0, 0});
  expect_error("attention_received: key_bits must be [2], got [3]",
               [&] { with_rules({.key_bits = words.view()}, {}); });
  expect_error("attention_received: known must be [2], got [3]",
               [&] { with_rules({.known = counts.view()}, {}); });
  const Tensor tall = zeros({65, 16}), narrow_k = zeros({2, 8});
  expect_error("attention_received: a prefix has k of at most 64 rows, got k [65, 16]",
               [&] { with_rules({}, {.k = tall.view()}); });
  expect_error("attention_received: a prefix has k of at most 64 rows",
               [&] { with_rules({}, {.v = narrow_k.view()}); });
  expect_error("attention_received: k of the prefix must be [2, 16], got [2, 8]",
               [&] { with_rules({}, {.k = narrow_k.view()}); });
  const PackedCells moved = cells_of({4, 3});
  const Packing other_queries = moved.packing();
  expect_error("a mask of causal order needs as many queries as keys in every cell", [&] {
    attention_received(
        ctx(), {p.q.view(), p.k.view(), p.lse.view(), other_queries, cells, 2, {.causal = true}},
        {}, out.view());
  });
  Tensor few = zeros({6, 2});
  expect_error("attention_prefix_share: share must be [7, 2], got [6, 2]", [&] {
    p.with([&](const AttentionPass& pass) { attention_prefix_share(ctx(), pass, few.view()); });
  });
  const Tensor integers({7, 16}, DType::i32, test_device());
  expect_error(cat("attention_received: computes on ",
                   on_cuda() ? "f32, bf16 or f16" : "f32 or f64", ", q is i32"),
               [&] { received(integers.view(), p.k.view(), p.lse.view(), cells, 2); });
  if (on_cuda()) {
    const Pass narrow = pass({3}, {3}, 1, 128);
    const Tensor wide = zeros({3, 129});
    const Packing three = narrow.keys.packing();
    Tensor result = zeros({1, 3});
    expect_error("attention_received: heads on cuda:0 are at most 128 wide, got 129", [&] {
      attention_received(ctx(), {wide.view(), wide.view(), narrow.lse.view(), three, three, 1}, {},
                         result.view());
    });
  }
}

}  // namespace
}  // namespace scgraft
