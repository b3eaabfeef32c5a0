// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention_export.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/ordered_sum.h"
#include "kernels/require_tensor.h"
#include "runtime/parallel.h"

namespace scgraft {
namespace {

constexpr int64_t kMostTopKeys = 32;

void check(const char* op, Context& ctx, const AttentionPass& pass) {
  const auto& [q, k, lse, queries, keys, heads] = pass;
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
}

// The definition: p_ij of one head of one cell.
template <class T>
struct Weights {
  bool reference;
  int64_t heads, stride, head_dim;
  int64_t n_queries, n_keys;
  const T* q;
  const T* k;
  const T* lse;

  Weights(const AttentionPass& pass, bool plain, int64_t cell, int64_t head)
      : reference(plain),
        heads(pass.heads),
        stride(pass.q.dim(1)),
        head_dim(stride / heads),
        n_queries(pass.queries.length(cell)),
        n_keys(pass.keys.length(cell)),
        q(pass.q.as<T>() + pass.queries.begin(cell) * stride + head * head_dim),
        k(pass.k.as<T>() + pass.keys.begin(cell) * stride + head * head_dim),
        lse(pass.lse.as<T>() + pass.queries.begin(cell) * heads + head) {}

  T score(int64_t i, int64_t j) const {
    const T scale = T(1) / std::sqrt(static_cast<T>(head_dim));
    const T* a = q + i * stride;
    const T* b = k + j * stride;
    if (!reference) return scale * ordered_dot(a, b, head_dim);
    T sum = 0;
    for (int64_t d = 0; d < head_dim; ++d) sum += a[d] * b[d];
    return scale * sum;
  }
  T of_score(int64_t i, T score) const { return std::exp(score - lse[i * heads]); }
  T operator()(int64_t i, int64_t j) const { return of_score(i, score(i, j)); }
};

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
  require_tensor(kOp, "p", p, {n, pass.heads, pass.keys.tokens()}, sum_type(pass.q.dtype()));
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda()) return cuda::attention_of_queries(ctx, pass, rows, p);
  }
  const int32_t* positions = data_or_null<int32_t>(rows);
  visit_real(pass.q.dtype(), [&]<class T>(Type<T>) {
    const auto out = p.as<T, 3>();
    for_each_head<T>(ctx, pass, [&](const Weights<T>& weights, int64_t cell, int64_t head) {
      const int64_t first = pass.keys.begin(cell);
      for (int64_t r = 0; r < n; ++r) {
        const int64_t i = positions == nullptr ? 0 : positions[cell * n + r];
        const bool there = 0 <= i && i < weights.n_queries;
        for (int64_t j = 0; j < weights.n_keys; ++j)
          out(r, head, first + j) = there ? weights(i, j) : T(0);
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
    const T* given = data_or_null<T>(weight);
    const bool per_head = weight.rank() == 2;
    const auto out = received.as<T, 2>();
    for_each_head<T>(ctx, pass, [&](const Weights<T>& weights, int64_t cell, int64_t head) {
      const auto of_query = [&](int64_t i) {
        if (given == nullptr) return T(1) / static_cast<T>(weights.n_queries);
        const int64_t row = pass.queries.begin(cell) + i;
        return per_head ? given[row * pass.heads + head] : given[row];
      };
      T* sums = out.row(head) + pass.keys.begin(cell);
      std::fill_n(sums, weights.n_keys, T(0));
      for (int64_t i = 0; i < weights.n_queries; ++i) {
        const T w = of_query(i);
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
    for_each_head<T>(ctx, pass, [&](const Weights<T>& weights, int64_t cell, int64_t head) {
      for (int64_t i = 0; i < weights.n_queries; ++i) {
        TopKeys<T> top(n);
        for (int64_t j = 0; j < weights.n_keys; ++j)
          top.offer(weights.score(i, j), static_cast<int32_t>(j));
        const int64_t at = ((pass.queries.begin(cell) + i) * pass.heads + head) * n;
        for (int64_t r = 0; r < n; ++r) {
          p.as<T>()[at + r] = weights.n_keys == 0 ? T(0) : weights.of_score(i, top.score[r]);
          keys.as<int32_t>()[at + r] = top.key[r];
        }
      }
    });
  });
}

}  // namespace scgraft
