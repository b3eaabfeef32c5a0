// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "kernels/attention_mask_host.h"
#include "kernels/attention_simd.h"
#include "kernels/require_tensor.h"
#include "runtime/cpu.h"
#include "runtime/parallel.h"

namespace scgraft {
namespace {

// What both directions agree on.
struct Problem {
  const Packing& queries;
  const Packing& keys;
  int64_t heads;
  int64_t head_dim;
  AttentionDropout rate;
  Dropout dropout;
  PhiloxKey key;
  AttentionMask mask;
  AttentionPrefix prefix;

  int64_t units() const { return keys.cells() * heads; }
  int64_t stride() const { return heads * head_dim; }
  int64_t longest(const Packing& packing) const {
    int64_t length = 0;
    for (int64_t cell = 0; cell < packing.cells(); ++cell)
      length = std::max(length, packing.length(cell));
    return length;
  }
  uint32_t site(int64_t head) const { return dropout.site + (static_cast<uint32_t>(head) << 20); }
  uint32_t cell_id(int64_t cell) const {
    return dropout.active() ? static_cast<uint32_t>(keys.ids[static_cast<size_t>(cell)]) : 0;
  }
};

void check_prefix(const char* op, const Context& ctx, const AttentionPrefix& prefix,
                  const ConstTensorView& q) {
  if (prefix.k.empty() && prefix.v.empty()) return;
  ctx.require_here(op, prefix.k, prefix.v);
  const Shape want{prefix.rows(), q.dim(1)};
  require(!prefix.k.empty() && prefix.rows() <= kPrefixRows, op,
          ": a prefix has k and v of at most ", kPrefixRows, " rows, got k ", prefix.k.shape(),
          " and v ", prefix.v.shape());
  require_tensor(op, "k of the prefix", prefix.k, want, q.dtype());
  require_tensor(op, "v of the prefix", prefix.v, want, q.dtype());
}

Problem check(const char* op, Context& ctx, const ConstTensorView& q, const ConstTensorView& k,
              const ConstTensorView& v, const ConstTensorView& lse, const Packing& queries,
              const Packing& keys, int64_t heads, Dropout dropout, const AttentionMask& mask,
              const AttentionPrefix& prefix) {
  ctx.require_here(op, q, k, v, lse);
  require(!queries.offsets.empty() && queries.offsets.size() == keys.offsets.size(), op,
          ": queries and keys must be packings of the same cells, got ", queries.offsets.size(),
          " and ", keys.offsets.size(), " offsets (one more than cells)");
  require(q.rank() == 2 && heads > 0 && q.dim(1) % heads == 0, op,
          ": q must be [query tokens, heads * head_dim], got ", q.shape(), " with ", heads,
          " heads");
  const Shape key_shape{keys.tokens(), q.dim(1)};
  require(q.dim(0) == queries.tokens(), op, ": q must have the ", queries.tokens(),
          " rows of the query packing, got ", q.shape());
  require(k.shape() == key_shape, op, ": k must be ", key_shape, ", got ", k.shape());
  require(v.shape() == key_shape, op, ": v must be ", key_shape, ", got ", v.shape());
  const Shape lse_shape{queries.tokens(), heads};
  require(lse.shape() == lse_shape, op, ": lse must be ", lse_shape, ", got ", lse.shape());
  const bool half = q.dtype() == DType::bf16 || q.dtype() == DType::f16;
  if (ctx.device().is_cuda()) {
    require<TypeError>(q.dtype() == DType::f32 || half, op, ": computes on f32, bf16 or f16, q is ",
                       q.dtype(), "; convert it first");
  } else {
    require<TypeError>(q.dtype() == DType::f32 || q.dtype() == DType::f64, op,
                       ": computes on f32 or f64, q is ", q.dtype(), "; convert it first");
  }
  for (const ConstTensorView* other : {&k, &v})
    require<TypeError>(other->dtype() == q.dtype(), op, ": q is ", q.dtype(), ", k or v is ",
                       other->dtype(), "; convert one of them first");
  const DType lse_type = half ? DType::f32 : q.dtype();
  require<TypeError>(lse.dtype() == lse_type, op, ": lse of a ", q.dtype(), " attention is ",
                     lse_type, ", got ", lse.dtype());
  const AttentionDropout rate(dropout.p);
  if (dropout.active()) {
    require<ConfigError>(dropout.p < 1 && rate.threshold < 256, op,
                         ": the dropout probability must be below 255.5/256, got ", dropout.p);
    require(keys.ids.size() + 1 == keys.offsets.size(), op,
            ": dropout needs the id of each of the ", keys.cells(),
            " cells in the key packing, got ", keys.ids.size());
    require(heads <= 4096 && dropout.site < (1u << 20), op,
            ": dropout masks tell apart 4096 heads and 2^20 sites, got ", heads, " heads and site ",
            dropout.site);
  }
  require_mask(op, ctx, mask, queries, keys);
  check_prefix(op, ctx, prefix, q);
  return {queries, keys,  heads, q.dim(1) / heads, rate, dropout, dropout_key(ctx.random()),
          mask,    prefix};
}

// A tensor shaped and typed like q or k, by its name.
void check_like(const char* op, const Context& ctx, const char* name, const ConstTensorView& x,
                const char* model_name, const ConstTensorView& model) {
  ctx.require_here(op, x);
  require(x.shape() == model.shape(), op, ": ", name, " must be ", model.shape(), " like ",
          model_name, ", got ", x.shape());
  require<TypeError>(x.dtype() == model.dtype(), op, ": ", name, " must be ", model.dtype(),
                     " like ", model_name, ", got ", x.dtype());
}

// What the backward pass computes; null: not wanted. Those of the prefix are sums over one (cell,
// head) each: [cells, heads, prefix rows, head_dim].
template <class T>
struct Gradients {
  T* dq = nullptr;
  T* dk = nullptr;
  T* dv = nullptr;
  T* prefix_k = nullptr;
  T* prefix_v = nullptr;

  bool own() const { return dq || dk || dv; }
};

// The definition: one head of one cell in plain loops. Rows of q, k, v [.., head_dim] are `stride`
// apart, of lse `heads`. Keys of the prefix have the numbers from -kPrefixRows on.
template <class T>
struct Definition {
  const Problem& problem;
  int64_t cell;
  int64_t head;
  const T* q;
  const T* k;
  const T* v;

  int64_t query_row(int64_t i) const { return problem.queries.begin(cell) + i; }
  int64_t key_row(int64_t j) const { return problem.keys.begin(cell) + j; }
  int64_t at(int64_t row) const { return row * problem.stride() + head * problem.head_dim; }
  int64_t lse_at(int64_t i) const { return query_row(i) * problem.heads + head; }
  int64_t n_queries() const { return problem.queries.length(cell); }
  int64_t n_keys() const { return problem.keys.length(cell); }
  const T* key(int64_t j) const {
    return j < 0 ? problem.prefix.k.as<T>() + at(j + kPrefixRows) : k + at(key_row(j));
  }
  const T* value(int64_t j) const {
    return j < 0 ? problem.prefix.v.as<T>() + at(j + kPrefixRows) : v + at(key_row(j));
  }
  int64_t prefix_at(int64_t j) const {
    const int64_t unit = cell * problem.heads + head;
    return (unit * problem.prefix.rows() + j + kPrefixRows) * problem.head_dim;
  }

  // Calls f(j) for the keys that query i sees, of the prefix first.
  template <class F>
  void each_prefix_key(F&& f) const {
    for (int64_t j = -kPrefixRows; j < problem.prefix.rows() - kPrefixRows; ++j) f(j);
  }
  template <class F>
  void each_own_key(int64_t i, F&& f) const {
    for (int64_t j = 0; j < n_keys(); ++j)
      if (sees(problem.mask, problem.keys, cell, i, j)) f(j);
  }
  template <class F>
  void each_key(int64_t i, F&& f) const {
    each_prefix_key(f);
    each_own_key(i, f);
  }

  T product(const T* a, const T* b) const {
    T sum = 0;
    for (int64_t d = 0; d < problem.head_dim; ++d) sum += a[d] * b[d];
    return sum;
  }
  T scale() const { return T(1) / std::sqrt(static_cast<T>(problem.head_dim)); }
  T score(int64_t i, int64_t j) const { return scale() * product(q + at(query_row(i)), key(j)); }
  // 0 or 1/keep.
  T factor(int64_t i, int64_t j) const {
    if (!problem.dropout.active()) return 1;
    const PhiloxCounter block = philox({problem.site(head), problem.cell_id(cell),
                                        static_cast<uint32_t>(i), static_cast<uint32_t>(j >> 4)},
                                       problem.key);
    const T kept = T(256) / static_cast<T>(256 - problem.rate.threshold);
    return problem.rate.keeps(block, static_cast<int>(j & 15)) ? kept : T(0);
  }

  void forward(T* o, T* lse) const {
    for (int64_t i = 0; i < n_queries(); ++i) {
      T* out = o + at(query_row(i));
      std::fill_n(out, problem.head_dim, T(0));
      T largest = -std::numeric_limits<T>::infinity();
      bool any = false;
      each_key(i, [&](int64_t j) {
        any = true;
        largest = std::max(largest, score(i, j));
      });
      T sum = 0;
      each_key(i, [&](int64_t j) {
        const T p = std::exp(score(i, j) - largest);
        const T dropped = p * factor(i, j);
        sum += p;
        const T* row = value(j);
        for (int64_t d = 0; d < problem.head_dim; ++d) out[d] += dropped * row[d];
      });
      if (any)
        for (int64_t d = 0; d < problem.head_dim; ++d) out[d] /= sum;
      lse[lse_at(i)] = largest + std::log(sum);
    }
  }

  void backward(const T* o, const T* lse, const T* dout, const Gradients<T>& grad) const {
    for (int64_t i = 0; grad.dq && i < n_queries(); ++i)
      std::fill_n(grad.dq + at(query_row(i)), problem.head_dim, T(0));
    for (int64_t j = 0; j < n_keys(); ++j) {
      if (grad.dk) std::fill_n(grad.dk + at(key_row(j)), problem.head_dim, T(0));
      if (grad.dv) std::fill_n(grad.dv + at(key_row(j)), problem.head_dim, T(0));
    }
    each_prefix_key([&](int64_t j) {
      if (grad.prefix_k) std::fill_n(grad.prefix_k + prefix_at(j), problem.head_dim, T(0));
      if (grad.prefix_v) std::fill_n(grad.prefix_v + prefix_at(j), problem.head_dim, T(0));
    });
    for (int64_t i = 0; i < n_queries(); ++i) {
      const int64_t qi = at(query_row(i));
      const T delta = product(dout + qi, o + qi);
      const auto pair = [&](int64_t j, T* dk, T* dv) {
        const T* key_j = key(j);
        const T p = std::exp(score(i, j) - lse[lse_at(i)]);
        const T z = factor(i, j);
        const T ds = scale() * p * (z * product(dout + qi, value(j)) - delta);
        for (int64_t d = 0; d < problem.head_dim; ++d) {
          if (grad.dq) grad.dq[qi + d] += ds * key_j[d];
          if (dk) dk[d] += ds * q[qi + d];
          if (dv) dv[d] += z * p * dout[qi + d];
        }
      };
      if (grad.dq || grad.prefix_k || grad.prefix_v)
        each_prefix_key([&](int64_t j) {
          pair(j, grad.prefix_k ? grad.prefix_k + prefix_at(j) : nullptr,
               grad.prefix_v ? grad.prefix_v + prefix_at(j) : nullptr);
        });
      if (grad.own())
        each_own_key(i, [&](int64_t j) {
          const int64_t kj = at(key_row(j));
          pair(j, grad.dk ? grad.dk + kj : nullptr, grad.dv ? grad.dv + kj : nullptr);
        });
    }
  }
};

// sums [prefix rows, heads * head_dim] += parts [cells, heads, prefix rows, head_dim], the cells in
// order.
template <class T>
void add_cells(Context& ctx, const Problem& problem, const T* parts, T* sums) {
  const int64_t rows = problem.prefix.rows(), dim = problem.head_dim;
  parallel_for(ctx, problem.heads * rows, [&](int64_t unit) {
    const int64_t head = unit / rows, row = unit % rows;
    T* sum = sums + row * problem.stride() + head * dim;
    for (int64_t cell = 0; cell < problem.keys.cells(); ++cell) {
      const T* part = parts + ((cell * problem.heads + head) * rows + row) * dim;
      for (int64_t d = 0; d < dim; ++d) sum[d] += part[d];
    }
  });
}

const AttentionSimd& simd() {
#if defined(__x86_64__)
  if (cpu_level() == CpuLevel::v4) return v4::attention_simd;
#endif
  return v3::attention_simd;
}

HeadDropout dropout_of(const Problem& problem, int64_t cell, int64_t head) {
  if (!problem.dropout.active()) return {};
  return {problem.rate.threshold,
          problem.rate.scale,
          problem.site(head),
          problem.cell_id(cell),
          {problem.key[0], problem.key[1]}};
}

HeadMask mask_of(const Problem& problem, int64_t cell) {
  const AttentionMask& mask = problem.mask;
  HeadMask m{.known = problem.keys.length(cell), .causal = mask.causal};
  if (!mask.key_bits.empty())
    m.key_bits = mask.key_bits.as<int64_t>() + first_key_word(problem.keys, cell);
  if (!mask.known.empty()) {
    m.known = std::clamp<int64_t>(mask.known.as<int32_t>()[cell], 0, m.known);
    m.self = true;
  }
  return m;
}

HeadPrefix prefix_of(const Problem& problem, int64_t head) {
  if (problem.prefix.rows() == 0) return {};
  const int64_t at = head * problem.head_dim;
  return {problem.prefix.k.as<float>() + at, problem.prefix.v.as<float>() + at,
          problem.prefix.rows()};
}

// Scratch of every thread, laid end to end.
class ThreadScratch {
 public:
  ThreadScratch(Context& ctx, int64_t floats)
      : scope_(ctx.scratch()),
        floats_((floats + 15) / 16 * 16),
        data_(scope_.take(Shape{ctx.threads(), floats_}, DType::f32).as<float>()) {}
  float* mine() const { return data_ + thread_index() * floats_; }

 private:
  Arena::Scope scope_;
  int64_t floats_;
  float* data_;
};

void fast_forward(Context& ctx, const Problem& problem, const float* q, const float* k,
                  const float* v, float* o, float* lse) {
  const ThreadScratch scratch(
      ctx, simd().forward_scratch(problem.longest(problem.keys), problem.head_dim));
  parallel_for(ctx, problem.units(), [&](int64_t unit) {
    const int64_t cell = unit / problem.heads;
    const int64_t head = unit % problem.heads;
    const int64_t first_query = problem.queries.begin(cell);
    const int64_t query = first_query * problem.stride() + head * problem.head_dim;
    const int64_t key = problem.keys.begin(cell) * problem.stride() + head * problem.head_dim;
    if (problem.queries.length(cell) == 0) return;
    if (problem.keys.length(cell) == 0)
      return Definition<float>{problem, cell, head, q, k, v}.forward(o, lse);
    simd().forward({.q = q + query,
                    .k = k + key,
                    .v = v + key,
                    .queries = problem.queries.length(cell),
                    .keys = problem.keys.length(cell),
                    .head_dim = problem.head_dim,
                    .stride = problem.stride(),
                    .lse_stride = problem.heads,
                    .dropout = dropout_of(problem, cell, head),
                    .mask = mask_of(problem, cell),
                    .prefix = prefix_of(problem, head),
                    .o = o + query,
                    .lse = lse + first_query * problem.heads + head},
                   scratch.mine());
  });
}

void fast_backward(Context& ctx, const Problem& problem, const float* q, const float* k,
                   const float* v, const float* o, const float* lse, const float* dout,
                   const Gradients<float>& grad) {
  const ThreadScratch scratch(
      ctx, simd().backward_scratch(problem.longest(problem.queries), problem.head_dim));
  parallel_for(ctx, problem.units(), [&](int64_t unit) {
    const int64_t cell = unit / problem.heads;
    const int64_t head = unit % problem.heads;
    const int64_t first_query = problem.queries.begin(cell);
    const int64_t query = first_query * problem.stride() + head * problem.head_dim;
    const int64_t key = problem.keys.begin(cell) * problem.stride() + head * problem.head_dim;
    if (problem.queries.length(cell) == 0 || problem.keys.length(cell) == 0)
      return Definition<float>{problem, cell, head, q, k, v}.backward(o, lse, dout, grad);
    const int64_t part = unit * problem.prefix.rows() * problem.head_dim;
    simd().backward({.q = q + query,
                     .k = k + key,
                     .v = v + key,
                     .o = o + query,
                     .lse = lse + first_query * problem.heads + head,
                     .dout = dout + query,
                     .queries = problem.queries.length(cell),
                     .keys = problem.keys.length(cell),
                     .head_dim = problem.head_dim,
                     .stride = problem.stride(),
                     .lse_stride = problem.heads,
                     .dropout = dropout_of(problem, cell, head),
                     .mask = mask_of(problem, cell),
                     .prefix = prefix_of(problem, head),
                     .dq = grad.dq ? grad.dq + query : nullptr,
                     .dk = grad.dk ? grad.dk + key : nullptr,
                     .dv = grad.dv ? grad.dv + key : nullptr,
                     .prefix_dk = grad.prefix_k ? grad.prefix_k + part : nullptr,
                     .prefix_dv = grad.prefix_v ? grad.prefix_v + part : nullptr},
                    scratch.mine());
  });
}

}  // namespace

void attention(Context& ctx, ConstTensorView q, ConstTensorView k, ConstTensorView v,
               const Packing& queries, const Packing& keys, int64_t heads, Dropout dropout,
               TensorView o, TensorView lse, const AttentionMask& mask,
               const AttentionPrefix& prefix) {
  const char* op = "attention";
  const Problem problem = check(op, ctx, q, k, v, lse, queries, keys, heads, dropout, mask, prefix);
  check_like(op, ctx, "o", o, "q", q);
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda())
      return cuda::attention(ctx, q, k, v, queries, keys, heads, dropout, o, lse, mask, prefix);
  }
  if (q.dtype() == DType::f32 && !ctx.reference())
    return fast_forward(ctx, problem, q.as<float>(), k.as<float>(), v.as<float>(), o.as<float>(),
                        lse.as<float>());
  visit_real(q.dtype(), [&]<class T>(Type<T>) {
    parallel_for(ctx, problem.units(), [&](int64_t unit) {
      Definition<T>{problem, unit / heads, unit % heads, q.as<T>(), k.as<T>(), v.as<T>()}.forward(
          o.as<T>(), lse.as<T>());
    });
  });
}

void attention_backward(Context& ctx, ConstTensorView q, ConstTensorView k, ConstTensorView v,
                        ConstTensorView o, ConstTensorView lse, ConstTensorView dout,
                        const Packing& queries, const Packing& keys, int64_t heads, Dropout dropout,
                        TensorView dq, TensorView dk, TensorView dv, const AttentionMask& mask,
                        const AttentionPrefix& prefix, const AttentionPrefixGradient& dprefix) {
  const char* op = "attention_backward";
  const Problem problem = check(op, ctx, q, k, v, lse, queries, keys, heads, dropout, mask, prefix);
  check_like(op, ctx, "o", o, "q", q);
  check_like(op, ctx, "dout", dout, "q", q);
  if (!dq.empty()) check_like(op, ctx, "dq", dq, "q", q);
  if (!dk.empty()) check_like(op, ctx, "dk", dk, "k", k);
  if (!dv.empty()) check_like(op, ctx, "dv", dv, "v", v);
  ctx.require_here(op, dprefix.k, dprefix.v);
  const Shape prefix_shape{prefix.rows(), q.dim(1)};
  require_optional(op, "dk of the prefix", dprefix.k, prefix_shape, sum_type(q.dtype()));
  require_optional(op, "dv of the prefix", dprefix.v, prefix_shape, sum_type(q.dtype()));
  if (dq.empty() && dk.empty() && dv.empty() && !dprefix.wanted()) return;
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda())
      return cuda::attention_backward(ctx, q, k, v, o, lse, dout, queries, keys, heads, dropout, dq,
                                      dk, dv, mask, prefix, dprefix);
  }
  Arena::Scope scratch(ctx.scratch());
  visit_real(q.dtype(), [&]<class T>(Type<T>) {
    Gradients<T> grad{
        .dq = data_or_null<T>(dq), .dk = data_or_null<T>(dk), .dv = data_or_null<T>(dv)};
    const auto parts = [&](const TensorView& wanted) {
      if (wanted.empty()) return static_cast<T*>(nullptr);
      return scratch.take(Shape{problem.units(), prefix.rows(), problem.head_dim}, q.dtype())
          .template as<T>();
    };
    grad.prefix_k = parts(dprefix.k);
    grad.prefix_v = parts(dprefix.v);
    bool done = false;
    if constexpr (std::is_same_v<T, float>) {
      done = !ctx.reference();
      if (done)
        fast_backward(ctx, problem, q.as<T>(), k.as<T>(), v.as<T>(), o.as<T>(), lse.as<T>(),
                      dout.as<T>(), grad);
    }
    if (!done)
      parallel_for(ctx, problem.units(), [&](int64_t unit) {
        Definition<T>{problem, unit / heads, unit % heads, q.as<T>(), k.as<T>(), v.as<T>()}
            .backward(o.as<T>(), lse.as<T>(), dout.as<T>(), grad);
      });
    if (grad.prefix_k) add_cells<T>(ctx, problem, grad.prefix_k, dprefix.k.as<T>());
    if (grad.prefix_v) add_cells<T>(ctx, problem, grad.prefix_v, dprefix.v.as<T>());
  });
}

}  // namespace scgraft
