// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention_export.h"

#include <algorithm>
#include <cmath>
#include <functional>
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

// A forward pass and what is asked about it.
struct Pass {
  PackedCells queries, keys;
  int64_t heads;
  Tensor q, k, lse;

  Pass(Context& ctx, const std::vector<int32_t>& query_lengths,
       const std::vector<int32_t>& key_lengths, int64_t n_heads, int64_t head_dim, DType type)
      : queries(cells_of(query_lengths)),
        keys(cells_of(key_lengths)),
        heads(n_heads),
        q(random_values({queries.rows(), heads * head_dim}, type, 1)),
        k(random_values({keys.rows(), heads * head_dim}, type, 2)) {
    forward(ctx);
  }
  Pass(PackedCells of_queries, PackedCells of_keys, int64_t n_heads, Tensor queries_rows,
       Tensor key_rows, Context& ctx)
      : queries(std::move(of_queries)),
        keys(std::move(of_keys)),
        heads(n_heads),
        q(std::move(queries_rows)),
        k(std::move(key_rows)) {
    forward(ctx);
  }

  void forward(Context& ctx) {
    Tensor o(q.shape(), q.dtype(), test_device());
    lse = Tensor({queries.rows(), heads}, type(), test_device());
    attention(ctx, q.view(), k.view(), k.view(), queries.packing(), keys.packing(), heads, {},
              o.view(), lse.view());
  }
  DType type() const { return sum_type(q.dtype()); }
  int64_t cells() const { return static_cast<int64_t>(queries.ids.size()); }

  // One cell alone.
  Pass only(Context& ctx, size_t cell) const {
    const auto part = [&](const Tensor& t, const PackedCells& of) {
      return on_test(on_host(t.view().rows(of.offsets[cell], of.offsets[cell + 1])));
    };
    const auto alone = [&](const PackedCells& of) {
      return cells_of({of.offsets[cell + 1] - of.offsets[cell]});
    };
    return {alone(queries), alone(keys), heads, part(q, queries), part(k, keys), ctx};
  }
  static Tensor on_test(const Tensor& t) {
    return tensor_of(t.shape(), t.dtype(), values_of(t.view()));
  }

  template <class Use>
  void with(Use&& use) const {
    const Packing of_queries = queries.packing(), of_keys = keys.packing();
    use(AttentionPass{q.view(), k.view(), lse.view(), of_queries, of_keys, heads});
  }
  static Tensor nans(Shape shape, DType dtype) {
    return tensor_of(shape, dtype,
                     std::vector<double>(static_cast<size_t>(shape.numel()), std::nan("")));
  }
  Tensor of_queries(Context& ctx, int64_t n, ConstTensorView rows) const {
    Tensor p = nans({n, heads, keys.rows()}, type());
    with([&](const AttentionPass& pass) { attention_of_queries(ctx, pass, rows, p.view()); });
    return p;
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

// p of the whole pass in f64, from its formula: the softmax of scaled products.
class Weights {
 public:
  explicit Weights(const Pass& pass)
      : pass_(pass), q_(values_of(pass.q.view())), k_(values_of(pass.k.view())) {
    const int64_t dim = pass.q.dim(1) / pass.heads;
    for (size_t cell = 0; cell + 1 < pass.keys.offsets.size(); ++cell)
      for (int64_t head = 0; head < pass.heads; ++head)
        for (int64_t i = 0; i < queries(cell); ++i) {
          std::vector<double> row;
          double sum = 0;
          for (int64_t j = 0; j < keys(cell); ++j) {
            double score = 0;
            for (int64_t d = 0; d < dim; ++d)
              score += at(q_, pass.queries.offsets[cell] + i, head * dim + d) *
                       at(k_, pass.keys.offsets[cell] + j, head * dim + d);
            row.push_back(std::exp(score / std::sqrt(static_cast<double>(dim))));
            sum += row.back();
          }
          for (double& w : row) w /= sum;
          rows_.push_back(row);
        }
    size_t first = 0;
    for (size_t cell = 0; cell + 1 < pass.keys.offsets.size(); ++cell) {
      first_.push_back(first);
      first += static_cast<size_t>(pass.heads * queries(cell));
    }
  }
  int64_t queries(size_t cell) const {
    return pass_.queries.offsets[cell + 1] - pass_.queries.offsets[cell];
  }
  int64_t keys(size_t cell) const {
    return pass_.keys.offsets[cell + 1] - pass_.keys.offsets[cell];
  }
  const std::vector<double>& row(size_t cell, int64_t head, int64_t i) const {
    return rows_[first_[cell] + static_cast<size_t>(head * queries(cell) + i)];
  }

 private:
  double at(const std::vector<double>& t, int64_t row, int64_t column) const {
    return t[static_cast<size_t>(row * pass_.q.dim(1) + column)];
  }
  const Pass& pass_;
  std::vector<double> q_, k_;
  std::vector<std::vector<double>> rows_;
  std::vector<size_t> first_;
};

class AttentionExportTest : public OpTest {
 protected:
  Pass pass(const std::vector<int32_t>& queries, const std::vector<int32_t>& keys, int64_t heads,
            int64_t head_dim) {
    return {ctx(), queries, keys, heads, head_dim, dtype()};
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
  // Calls test(pass, its weights) for cells and widths at which kernels change.
  void for_each_pass(const std::function<void(const Pass&, const Weights&)>& test) {
    for_each_type([&] {
      for (const int64_t head_dim : {1, 8, 33, 40, 64, 96, 128}) {
        SCOPED_TRACE(cat("head_dim ", head_dim));
        const int32_t longest = head_dim == 64 ? 150 : 2;
        const Pass p = pass({0, 1, 17, 65, 3, longest}, {2, 1, 33, 65, 0, longest}, 2, head_dim);
        test(p, Weights(p));
      }
    });
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

TEST_P(AttentionExportTest, QueriesAgreeWithTheDefinition) {
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
          const bool there = 0 <= i && i < weights.queries(cell);
          for (int64_t j = 0; j < weights.keys(cell); ++j)
            want.push_back(there ? weights.row(cell, head, i)[static_cast<size_t>(j)] : 0);
        }
    expect_close(got.view(), want, 150);
    // Without a list: query 0.
    want.resize(static_cast<size_t>(p.heads * p.keys.rows()));
    expect_close(p.of_queries(ctx(), 1, {}).view(), want, 150);
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
      expect_close(p.received(ctx(), weight).view(), want, 150);
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
  for_each_type([&] {
    for (const int64_t head_dim : {1, 8, 33, 40, 64, 96, 128})
      for (const auto& [n_queries, n_keys] :
           {std::pair{1, 1}, {3, 33}, {65, 64}, {head_dim == 64 ? 130 : 2, 70}}) {
        SCOPED_TRACE(cat("head_dim ", head_dim, ", ", n_queries, " x ", n_keys));
        const Pass p =
            pass({n_queries, n_queries, n_queries}, {n_keys, n_keys, n_keys}, 2, head_dim);
        const Weights weights(p);
        std::vector<double> want(static_cast<size_t>(n_queries * n_keys));
        for (size_t cell = 0; cell < 3; ++cell)
          for (int64_t head = 0; head < 2; ++head)
            for (int64_t i = 0; i < n_queries; ++i)
              for (int64_t j = 0; j < n_keys; ++j)
                want[static_cast<size_t>(i * n_keys + j)] +=
                    weights.row(cell, head, i)[static_cast<size_t>(j)];
        expect_close(p.map(ctx()).view(), want, 150);
      }
  });
}

// Weights in falling order; each belongs to the key that is named; keys are named once; and the
// weights are the largest ones. Near ties may be named in either order.
TEST_P(AttentionExportTest, TopKeysAgreeWithTheDefinition) {
  for_each_pass([&](const Pass& p, const Weights& weights) {
    for (const int64_t n : {1, 5, 32}) {
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
            for (size_t r = 0; r < static_cast<size_t>(n); ++r) {
              if (r >= row.size()) {
                ASSERT_EQ(keys[at + r], -1);
                named.push_back(0);
                continue;
              }
              const auto key = static_cast<size_t>(keys[at + r]);
              ASSERT_LT(key, row.size());
              ASSERT_FALSE(seen[key]);
              seen[key] = true;
              named.push_back(row[key]);
              if (r > 0) {
                ASSERT_LE(got[at + r], got[at + r - 1]);
              }
            }
          }
      expect_close(top.p.view(), largest, 150);
      expect_close(top.p.view(), named, 150);
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

// What the modes say about one pass fits together.
TEST_P(AttentionExportTest, ModesAgreeWithEachOther) {
  for_each_type([&] {
    const Pass p = pass({70, 70}, {70, 70}, 3, 64);
    std::vector<int32_t> all;
    for (int32_t cell = 0; cell < 2; ++cell)
      for (int32_t i = 0; i < 70; ++i) all.push_back(i);
    const Tensor rows = positions_of({2, 70}, all);
    const std::vector<double> w = values_of(p.of_queries(ctx(), 70, rows.view()).view());
    std::vector<double> received(3 * 140), map(70 * 70);
    for (size_t i = 0; i < 70; ++i)
      for (size_t head = 0; head < 3; ++head)
        for (size_t j = 0; j < 140; ++j) {
          const double p_ij = w[(i * 3 + head) * 140 + j];
          received[head * 140 + j] += p_ij / 70;
          map[i * 70 + j % 70] += p_ij;
        }
    expect_close(p.received(ctx(), {}).view(), received, 150);
    expect_close(p.map(ctx()).view(), map, 150);
  });
}

TEST_P(AttentionExportTest, CuttingTheBatchBetweenCellsChangesNothing) {
  for_each_type([&] {
    for (const int64_t head_dim : {33, 64}) {
      SCOPED_TRACE(cat("head_dim ", head_dim));
      const Pass all = pass({33, 70, 5}, {33, 70, 80}, 2, head_dim);
      const Tensor rows = positions_of({3, 2}, {4, 0, 4, 0, 4, 0});
      const Tensor own_rows = positions_of({1, 2}, {4, 0});
      const Tensor weight = random_values({all.queries.rows()}, all.type(), 5);
      const Tensor listed = on_host(all.of_queries(ctx(), 2, rows.view()).view());
      const Tensor received = on_host(all.received(ctx(), weight.view()).view());
      const Pass::Top top = all.top(ctx(), 8);
      for (size_t cell = 0; cell < 3; ++cell) {
        const Pass one = all.only(ctx(), cell);
        const int32_t begin = all.queries.offsets[cell], end = all.queries.offsets[cell + 1];
        const int32_t key = all.keys.offsets[cell], key_end = all.keys.offsets[cell + 1];
        // Columns of the keys of this cell, of each row of a [.., key tokens] tensor.
        const auto columns = [&](const Tensor& t) {
          const std::vector<double> values = values_of(t.view());
          std::vector<double> cut;
          for (int64_t row = 0; row < t.numel() / all.keys.rows(); ++row)
            for (int32_t j = key; j < key_end; ++j)
              cut.push_back(values[static_cast<size_t>(row * all.keys.rows() + j)]);
          return cut;
        };
        EXPECT_EQ(values_of(one.of_queries(ctx(), 2, own_rows.view()).view()), columns(listed));
        EXPECT_EQ(values_of(one.received(ctx(), weight.view().rows(begin, end)).view()),
                  columns(received));
        const Pass::Top own = one.top(ctx(), 8);
        expect_same_bits(own.p.view(), top.p.view().rows(begin, end));
        expect_same_bits(own.keys.view(), top.keys.view().rows(begin, end));
      }
      // The map goes on where the batch before it ended.
      const Pass equal = pass({70, 70, 70}, {40, 40, 40}, 2, head_dim);
      const Tensor whole = equal.map(ctx());
      Tensor parts({70, 40}, equal.type(), test_device());
      for (size_t cell = 0; cell < 3; ++cell)
        equal.only(ctx(), cell).with([&](const AttentionPass& pass) {
          attention_map(ctx(), pass, parts.view());
        });
      expect_same_bits(parts.view(), whole.view());
    }
  });
}

TEST_P(AttentionExportTest, ThreadsAndSchedulingChangeNothing) {
  for_each_type([&] {
    const Pass p = pass({40, 40}, {70, 70}, 2, 64);
    const auto run = [&](Context& context) {
      std::vector<Tensor> out;
      out.push_back(p.of_queries(context, 1, {}));
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
  const Pass keys_only = pass({0, 0}, {3, 2}, 1, 8);
  expect_close(keys_only.received(ctx(), {}).view(), {0, 0, 0, 0, 0});
  expect_close(keys_only.of_queries(ctx(), 1, {}).view(), {0, 0, 0, 0, 0});
  const Pass queries_only = pass({2}, {0}, 1, 8);
  const Pass::Top top = queries_only.top(ctx(), 2);
  expect_close(top.p.view(), {0, 0, 0, 0});
  EXPECT_EQ(values_of(top.keys.view()), (std::vector<double>{-1, -1, -1, -1}));
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
