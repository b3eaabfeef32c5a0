// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention_export.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <type_traits>

#include "kernels/attention_export_simd.h"
#include "kernels/attention_mask_host.h"
#include "kernels/ordered_sum.h"
#include "kernels/require_tensor.h"
#include "runtime/cpu.h"
#include "runtime/parallel.h"

namespace scgraft {
namespace {

constexpr int64_t kMostTopKeys = 32;

void check(const char* op, Context& ctx, const AttentionPass& pass) {
  const auto& [q, k, lse, queries, keys, heads, mask, prefix] = pass;
  ctx.require_here(op, q, k, lse);
  require(!queries.offsets.empty() && queries.offsets.size() == keys.offsets.size(), op,
          ": queries and keys must be packings of the same cells, got ", queries.offsets.size(),
          " and ", keys.offsets.size(), " offsets (one more than cells)");
  require(q.rank() == 2 && heads > 0 && q.dim(1) > 0 && q.dim(1) % heads == 0, op,
          ": q must be [query tokens, heads * head_dim], got ", q.shape(), " with ", heads,
          " heads");
  require(q.dim(0) == queries.tokens(), op, ": q must have the ", queries.tokens(),
          " rows of the query packing, got ", q.shape());
  const bool cuda = ctx.device().is_cuda();
  require<TypeError>(q.dtype() == DType::f32 || (cuda && sum_type(q.dtype()) == DType::f32) ||
                         (!cuda && q.dtype() == DType::f64),
                     op, ": computes on ", cuda ? "f32, bf16 or f16" : "f32 or f64", ", q is ",
                     q.dtype(), "; convert it first");
  require_tensor(op, "k", k, {keys.tokens(), q.dim(1)}, q.dtype());
  require_tensor(op, "lse", lse, {queries.tokens(), heads}, sum_type(q.dtype()));
  require_mask(op, ctx, mask, queries, keys);
  ctx.require_here(op, prefix.k);
  require(prefix.rows() <= kPrefixRows && (prefix.v.empty() || !prefix.k.empty()), op,
          ": a prefix has k of at most ", kPrefixRows, " rows, got k ", prefix.k.shape(), " and v ",
          prefix.v.shape());
  require_optional(op, "k of the prefix", prefix.k, {prefix.rows(), q.dim(1)}, q.dtype());
}

// Whether L is that of a query without keys.
template <class T>
bool sees_none(T lse) {
  return lse == -std::numeric_limits<T>::infinity();
}

// The definition: p_ij of one head of one cell.
template <class T>
struct Weights {
  const AttentionPass& pass;
  bool reference;
  int64_t cell, stride, head_dim;
  int64_t n_queries, n_keys;
  const T* q;
  const T* k;
  const T* prefix_k;
  const T* lse;

  Weights(const AttentionPass& of, bool plain, int64_t of_cell, int64_t head)
      : pass(of),
        reference(plain),
        cell(of_cell),
        stride(pass.q.dim(1)),
        head_dim(stride / pass.heads),
        n_queries(pass.queries.length(cell)),
        n_keys(pass.keys.length(cell)),
        q(pass.q.as<T>() + pass.queries.begin(cell) * stride + head * head_dim),
        k(pass.k.as<T>() + pass.keys.begin(cell) * stride + head * head_dim),
        prefix_k(pass.prefix.rows() == 0 ? nullptr : pass.prefix.k.as<T>() + head * head_dim),
        lse(pass.lse.as<T>() + pass.queries.begin(cell) * pass.heads + head) {}

  bool visible(int64_t i, int64_t j) const { return sees(pass.mask, pass.keys, cell, i, j); }
  T score(int64_t i, const T* key) const {
    const T scale = T(1) / std::sqrt(static_cast<T>(head_dim));
    const T* a = q + i * stride;
    if (!reference) return scale * ordered_dot(a, key, head_dim);
    T sum = 0;
    for (int64_t d = 0; d < head_dim; ++d) sum += a[d] * key[d];
    return scale * sum;
  }
  T score(int64_t i, int64_t j) const { return score(i, k + j * stride); }
  T of_score(int64_t i, T score) const {
    const T l = lse[i * pass.heads];
    return sees_none(l) ? T(0) : std::exp(score - l);
  }
  T operator()(int64_t i, int64_t j) const {
    return visible(i, j) ? of_score(i, score(i, j)) : T(0);
  }
  T of_prefix(int64_t i, int64_t x) const { return of_score(i, score(i, prefix_k + x * stride)); }
};

// Puts `value` wherever query i of a cell does not see the key: x [keys of the cell].
void hide(const AttentionPass& pass, int64_t cell, int64_t i, float value, float* x) {
  const AttentionMask& mask = pass.mask;
  const int64_t n = pass.keys.length(cell);
  int64_t open = n;  // from here on no key but the query's own can be seen
  if (!mask.known.empty()) open = std::clamp<int64_t>(mask.known.as<int32_t>()[cell], 0, n);
  if (mask.causal) open = std::min(open, i + 1);
  if (open < n) {
    const bool itself = !mask.known.empty() && open <= i;
    const float own = itself ? x[i] : value;
    std::fill(x + open, x + n, value);
    if (itself) x[i] = own;
  }
  if (mask.key_bits.empty()) return;
  const int64_t* words = mask.key_bits.as<int64_t>() + first_key_word(pass.keys, cell);
  for (int64_t j = 0; j < n; ++j)
    if ((words[j / 64] >> (j % 64) & 1) == 0) x[j] = value;
}

const AttentionExportSimd& simd() {
#if defined(__x86_64__)
  if (cpu_level() == CpuLevel::v4) return v4::attention_export_simd;
#endif
  return v3::attention_export_simd;
}

// The fast path: scores of several queries of a head at a time, in scratch memory of every thread.
class ScoreRows {
 public:
  ScoreRows(Context& ctx, const AttentionPass& pass)
      : scope_(ctx.scratch()), pass_(pass), head_dim_(pass.q.dim(1) / pass.heads) {
    int64_t longest = 0;
    for (int64_t cell = 0; cell < pass.keys.cells(); ++cell)
      longest = std::max(longest, pass.keys.length(cell));
    const auto take = [&](int64_t floats) {
      return scope_.take({ctx.threads(), (floats + 15) / 16 * 16}, DType::f32).as<float, 2>();
    };
    keys_ = take(simd().key_floats(longest, head_dim_));
    queries_ = take(simd().query_floats(head_dim_));
    scores_ = take(kExportQueries * simd().score_row(longest));
  }

  // Goes on to a head of a cell, on the calling thread.
  void pack_keys(int64_t cell, int64_t head) const {
    simd().pack_keys(pass_.k.as<float>() + at(pass_.keys.begin(cell), head), pass_.q.dim(1),
                     pass_.keys.length(cell), head_dim_, keys_.row(thread_index()));
  }
  // Calls use(i, row) for queries [begin, end), at most kExportQueries of them, of the head whose
  // keys are packed: row [keys of the cell] holds their scores, in units of log2, -inf for keys
  // that the query does not see.
  template <class Use>
  void scores(int64_t cell, int64_t head, int64_t begin, int64_t end, Use&& use) const {
    const int64_t n = pass_.keys.length(cell);
    float* rows = scores_.row(thread_index());
    simd().scores(pass_.q.as<float>() + at(pass_.queries.begin(cell) + begin, head), pass_.q.dim(1),
                  end - begin, keys_.row(thread_index()), n, head_dim_,
                  queries_.row(thread_index()), rows);
    for (int64_t i = begin; i < end; ++i) {
      float* row = rows + (i - begin) * simd().score_row(n);
      hide(pass_, cell, i, -std::numeric_limits<float>::infinity(), row);
      use(i, row);
    }
  }
  // The same with weights.
  template <class Use>
  void weights(int64_t cell, int64_t head, int64_t begin, int64_t end, Use&& use) const {
    scores(cell, head, begin, end, [&](int64_t i, float* row) {
      if (sees_none(lse(cell, head, i)))
        std::fill_n(row, pass_.keys.length(cell), 0.0f);
      else
        simd().weights(row, pass_.keys.length(cell), lse(cell, head, i));
      use(i, static_cast<const float*>(row));
    });
  }
  float lse(int64_t cell, int64_t head, int64_t i) const {
    return pass_.lse.as<float>()[(pass_.queries.begin(cell) + i) * pass_.heads + head];
  }

 private:
  int64_t at(int64_t row, int64_t head) const { return row * pass_.q.dim(1) + head * head_dim_; }

  Arena::Scope scope_;
  const AttentionPass& pass_;
  int64_t head_dim_;
  Array<float, 2> keys_, queries_, scores_;
};

// Calls use(begin, end) for pieces of the queries of a cell, in order.
template <class Use>
void for_query_tiles(int64_t queries, Use&& use) {
  for (int64_t begin = 0; begin < queries; begin += kExportQueries)
    use(begin, std::min(begin + kExportQueries, queries));
}

// Calls unit(weights, cell, head) for every cell and head, in parallel.
template <class T, class Unit>
void for_each_head(Context& ctx, const AttentionPass& pass, Unit&& unit) {
  parallel_for(ctx, pass.keys.cells() * pass.heads, [&](int64_t u) {
    const int64_t cell = u / pass.heads;
    const int64_t head = u % pass.heads;
    unit(Weights<T>(pass, ctx.reference(), cell, head), cell, head);
  });
}

// The n best (score, key) so far, best first.
template <class T>
struct TopKeys {
  int64_t n;
  T score[kMostTopKeys];
  int32_t key[kMostTopKeys];

  explicit TopKeys(int64_t size) : n(size) {
    std::fill_n(score, n, -std::numeric_limits<T>::infinity());
    std::fill_n(key, n, -1);
  }
  // Keys come in order of their index, so that an equal score is not better.
  void offer(T s, int32_t j) {
    if (!(s > score[n - 1])) return;
    int64_t at = n - 1;
    for (; at > 0 && s > score[at - 1]; --at) {
      score[at] = score[at - 1];
      key[at] = key[at - 1];
    }
    score[at] = s;
    key[at] = j;
  }
};

// Weights of the queries that attention_received() sums with.
template <class T>
struct QueryWeights {
  const AttentionPass& pass;
  const T* weight;  // or null
  bool per_head;

  T operator()(int64_t cell, int64_t head, int64_t i) const {
    if (weight == nullptr) return T(1) / static_cast<T>(pass.queries.length(cell));
    const int64_t row = pass.queries.begin(cell) + i;
    return per_head ? weight[row * pass.heads + head] : weight[row];
  }
};

void fast_received(Context& ctx, const AttentionPass& pass, const QueryWeights<float>& of_query,
                   Array<float, 2> out) {
  const ScoreRows rows(ctx, pass);
  parallel_for(ctx, pass.keys.cells() * pass.heads, [&](int64_t u) {
    const int64_t cell = u / pass.heads;
    const int64_t head = u % pass.heads;
    const int64_t n = pass.keys.length(cell);
    float* sums = out.row(head) + pass.keys.begin(cell);
    std::fill_n(sums, n, 0.0f);
    if (n == 0) return;
    rows.pack_keys(cell, head);
    for_query_tiles(pass.queries.length(cell), [&](int64_t begin, int64_t end) {
      rows.weights(cell, head, begin, end, [&](int64_t i, const float* p) {
        const float w = of_query(cell, head, i);
#pragma omp simd
        for (int64_t j = 0; j < n; ++j) sums[j] += w * p[j];
      });
    });
  });
}

void fast_map(Context& ctx, const AttentionPass& pass, Array<float, 2> out) {
  const int64_t n = out.dim(1);
  if (n == 0) return;
  const ScoreRows rows(ctx, pass);
  Arena::Scope scratch(ctx.scratch());
  // Of every thread some rows of the map: sums over the heads of one cell.
  const auto sums = scratch.take({ctx.threads(), kExportQueries * n}, DType::f32).as<float, 2>();
  const int64_t tiles = (out.dim(0) + kExportQueries - 1) / kExportQueries;
  parallel_for(ctx, tiles, [&](int64_t tile) {
    const int64_t begin = tile * kExportQueries;
    const int64_t end = std::min(begin + kExportQueries, out.dim(0));
    float* sum = sums.row(thread_index());
    for (int64_t cell = 0; cell < pass.keys.cells(); ++cell) {
      std::fill_n(sum, (end - begin) * n, 0.0f);
      for (int64_t head = 0; head < pass.heads; ++head) {
        rows.pack_keys(cell, head);
        rows.weights(cell, head, begin, end, [&](int64_t i, const float* p) {
          float* to = sum + (i - begin) * n;
#pragma omp simd
          for (int64_t j = 0; j < n; ++j) to[j] += p[j];
        });
      }
      float* to = out.row(begin);
#pragma omp simd
      for (int64_t j = 0; j < (end - begin) * n; ++j) to[j] += sum[j];
    }
  });
}

void fast_top_keys(Context& ctx, const AttentionPass& pass, Array<float, 3> p,
                   Array<int32_t, 3> keys) {
  const ScoreRows rows(ctx, pass);
  const int64_t size = p.dim(2);
  parallel_for(ctx, pass.keys.cells() * pass.heads, [&](int64_t u) {
    const int64_t cell = u / pass.heads;
    const int64_t head = u % pass.heads;
    const int64_t n = pass.keys.length(cell);
    if (n > 0) rows.pack_keys(cell, head);
    for_query_tiles(pass.queries.length(cell), [&](int64_t begin, int64_t end) {
      const auto store = [&](int64_t i, TopKeys<float>& top) {
        const int64_t row = pass.queries.begin(cell) + i;
        for (int64_t r = 0; r < size; ++r) {
          const float l = rows.lse(cell, head, i);
          p(row, head, r) =
              sees_none(l) ? 0.0f : std::exp2(top.score[r] - l * std::numbers::log2e_v<float>);
          keys(row, head, r) = top.key[r];
        }
      };
      if (n == 0) {
        TopKeys<float> none(size);
        for (int64_t i = begin; i < end; ++i) store(i, none);
        return;
      }
      rows.scores(cell, head, begin, end, [&](int64_t i, const float* scores) {
        TopKeys<float> top(size);
        for (int64_t j = 0; j < n; ++j) top.offer(scores[j], static_cast<int32_t>(j));
        store(i, top);
      });
    });
  });
}

}  // namespace

void attention_of_queries(Context& ctx, const AttentionPass& pass, ConstTensorView rows,
                          TensorView p) {
  constexpr const char* kOp = "attention_of_queries";
  check(kOp, ctx, pass);
  ctx.require_here(kOp, rows, p);
  const int64_t cells = pass.keys.cells();
  require(rows.empty() || (rows.rank() == 2 && rows.dim(0) == cells), kOp,
          ": rows must be [cells, n] with ", cells, " cells, got ", rows.shape());
  const int64_t n = rows.empty() ? 1 : rows.dim(1);
  require_optional(kOp, "rows", rows, {cells, n}, DType::i32);
  const int64_t prefix = pass.prefix.rows();
  require_tensor(kOp, "p", p, {n, pass.heads, pass.keys.tokens() + cells * prefix},
                 sum_type(pass.q.dtype()));
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda()) return cuda::attention_of_queries(ctx, pass, rows, p);
  }
  const int32_t* positions = data_or_null<int32_t>(rows);
  visit_real(pass.q.dtype(), [&]<class T>(Type<T>) {
    const auto out = p.as<T, 3>();
    for_each_head<T>(ctx, pass, [&](const Weights<T>& weights, int64_t cell, int64_t head) {
      const int64_t first = pass.keys.begin(cell) + cell * prefix;
      for (int64_t r = 0; r < n; ++r) {
        const int64_t i = positions == nullptr ? 0 : positions[cell * n + r];
        const bool there = 0 <= i && i < weights.n_queries;
        for (int64_t x = 0; x < prefix; ++x)
          out(r, head, first + x) = there ? weights.of_prefix(i, x) : T(0);
        for (int64_t j = 0; j < weights.n_keys; ++j)
          out(r, head, first + prefix + j) = there ? weights(i, j) : T(0);
      }
    });
  });
}

void attention_prefix_share(Context& ctx, const AttentionPass& pass, TensorView share) {
  constexpr const char* kOp = "attention_prefix_share";
  check(kOp, ctx, pass);
  ctx.require_here(kOp, share);
  require_tensor(kOp, "share", share, {pass.queries.tokens(), pass.heads},
                 sum_type(pass.q.dtype()));
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda()) return cuda::attention_prefix_share(ctx, pass, share);
  }
  visit_real(pass.q.dtype(), [&]<class T>(Type<T>) {
    const auto out = share.as<T, 2>();
    for_each_head<T>(ctx, pass, [&](const Weights<T>& weights, int64_t cell, int64_t head) {
      for (int64_t i = 0; i < weights.n_queries; ++i) {
        T sum = 0;
        for (int64_t x = 0; x < pass.prefix.rows(); ++x) sum += weights.of_prefix(i, x);
        out(pass.queries.begin(cell) + i, head) = sum;
      }
    });
  });
}

void attention_received(Context& ctx, const AttentionPass& pass, ConstTensorView weight,
                        TensorView received) {
  constexpr const char* kOp = "attention_received";
  check(kOp, ctx, pass);
  ctx.require_here(kOp, weight, received);
  const int64_t tokens = pass.queries.tokens();
  const DType type = sum_type(pass.q.dtype());
  require_optional(kOp, "weight", weight,
                   weight.rank() == 2 ? Shape{tokens, pass.heads} : Shape{tokens}, type);
  require_tensor(kOp, "received", received, {pass.heads, pass.keys.tokens()}, type);
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda()) return cuda::attention_received(ctx, pass, weight, received);
  }
  visit_real(pass.q.dtype(), [&]<class T>(Type<T>) {
    const QueryWeights<T> of_query{pass, data_or_null<T>(weight), weight.rank() == 2};
    const auto out = received.as<T, 2>();
    if constexpr (std::is_same_v<T, float>) {
      if (!ctx.reference()) return fast_received(ctx, pass, of_query, out);
    }
    for_each_head<T>(ctx, pass, [&](const Weights<T>& weights, int64_t cell, int64_t head) {
      T* sums = out.row(head) + pass.keys.begin(cell);
      std::fill_n(sums, weights.n_keys, T(0));
      for (int64_t i = 0; i < weights.n_queries; ++i) {
        const T w = of_query(cell, head, i);
        for (int64_t j = 0; j < weights.n_keys; ++j) sums[j] += w * weights(i, j);
      }
    });
  });
}

void attention_map(Context& ctx, const AttentionPass& pass, TensorView map) {
  constexpr const char* kOp = "attention_map";
  check(kOp, ctx, pass);
  ctx.require_here(kOp, map);
  const int64_t cells = pass.keys.cells();
  if (cells == 0) return;
  const int64_t n_queries = pass.queries.length(0);
  const int64_t n_keys = pass.keys.length(0);
  for (int64_t cell = 1; cell < cells; ++cell)
    require(pass.queries.length(cell) == n_queries && pass.keys.length(cell) == n_keys, kOp,
            ": cells of one map must have the same genes in the same order, but cell ", cell,
            " has ", pass.queries.length(cell), " queries and ", pass.keys.length(cell),
            " keys, cell 0 has ", n_queries, " and ", n_keys);
  require_tensor(kOp, "map", map, {n_queries, n_keys}, sum_type(pass.q.dtype()));
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda()) return cuda::attention_map(ctx, pass, map);
  }
  visit_real(pass.q.dtype(), [&]<class T>(Type<T>) {
    if constexpr (std::is_same_v<T, float>) {
      if (!ctx.reference()) return fast_map(ctx, pass, map.as<float, 2>());
    }
    Arena::Scope scratch(ctx.scratch());
    // Of every thread one row of the map: the sum over heads of one cell.
    const auto sums = scratch.take({ctx.threads(), n_keys}, map.dtype()).template as<T, 2>();
    const auto out = map.as<T, 2>();
    parallel_for(ctx, n_queries, [&](int64_t i) {
      T* sum = sums.row(thread_index());
      for (int64_t cell = 0; cell < cells; ++cell) {
        std::fill_n(sum, n_keys, T(0));
        for (int64_t head = 0; head < pass.heads; ++head) {
          const Weights<T> weights(pass, ctx.reference(), cell, head);
          for (int64_t j = 0; j < n_keys; ++j) sum[j] += weights(i, j);
        }
        for (int64_t j = 0; j < n_keys; ++j) out(i, j) += sum[j];
      }
    });
  });
}

void attention_top_keys(Context& ctx, const AttentionPass& pass, TensorView p, TensorView keys) {
  constexpr const char* kOp = "attention_top_keys";
  check(kOp, ctx, pass);
  ctx.require_here(kOp, p, keys);
  const int64_t tokens = pass.queries.tokens();
  require(p.rank() == 3 && 1 <= p.dim(2) && p.dim(2) <= kMostTopKeys, kOp,
          ": p must be [query tokens, heads, n] with 1 <= n <= ", kMostTopKeys, ", got ",
          p.shape());
  const int64_t n = p.dim(2);
  require_tensor(kOp, "p", p, {tokens, pass.heads, n}, sum_type(pass.q.dtype()));
  require_tensor(kOp, "keys", keys, p.shape(), DType::i32);
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda()) return cuda::attention_top_keys(ctx, pass, p, keys);
  }
  visit_real(pass.q.dtype(), [&]<class T>(Type<T>) {
    if constexpr (std::is_same_v<T, float>) {
      if (!ctx.reference())
        return fast_top_keys(ctx, pass, p.as<float, 3>(), keys.as<int32_t, 3>());
    }
    for_each_head<T>(ctx, pass, [&](const Weights<T>& weights, int64_t cell, int64_t head) {
      for (int64_t i = 0; i < weights.n_queries; ++i) {
        TopKeys<T> top(n);
        for (int64_t j = 0; j < weights.n_keys; ++j)
          if (weights.visible(i, j)) top.offer(weights.score(i, j), static_cast<int32_t>(j));
        const int64_t at = ((pass.queries.begin(cell) + i) * pass.heads + head) * n;
        for (int64_t r = 0; r < n; ++r) {
          p.as<T>()[at + r] = weights.of_score(i, top.score[r]);
          keys.as<int32_t>()[at + r] = top.key[r];
        }
      }
    });
  });
}

}  // namespace scgraft
