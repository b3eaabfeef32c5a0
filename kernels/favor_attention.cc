// SPDX-License-Identifier: Apache-2.0
#include "kernels/favor_attention.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "kernels/favor_attention_fast.h"
#include "kernels/favor_attention_simd.h"
#include "kernels/require_tensor.h"
#include "runtime/parallel.h"

namespace scgraft {

favor::Problem favor::check(const char* op, Context& ctx, const ConstTensorView& q,
                            const ConstTensorView& k, const ConstTensorView& v,
                            const Packing& packing, int64_t heads,
                            const ConstTensorView& projection, FavorOptions options,
                            const FavorContext& context) {
  ctx.require_here(op, q, k, v, projection, context.sums, context.mass, context.largest,
                   context.peak);
  require(q.rank() == 2 && heads > 0 && q.dim(1) % heads == 0, op,
          ": q must be [tokens, heads * head_dim], got ", q.shape(), " with ", heads, " heads");
  require_packed(op, "q", packing, q.dim(0));
  if (ctx.device().is_cuda()) {
    require<TypeError>(sum_type(q.dtype()) == DType::f32, op,
                       ": computes on f32, bf16 or f16, q is ", q.dtype(), "; convert it first");
  } else {
    require<TypeError>(q.dtype() == DType::f32 || q.dtype() == DType::f64, op,
                       ": computes on f32 or f64, q is ", q.dtype(), "; convert it first");
  }
  require_tensor(op, "k", k, q.shape(), q.dtype());
  require_tensor(op, "v", v, q.shape(), q.dtype());
  const int64_t head_dim = q.dim(1) / heads, cells = packing.cells();
  require(projection.rank() == 2 && projection.dim(0) > 0 && projection.dim(1) == head_dim, op,
          ": the projection must be [features, ", head_dim, "] with a feature or more, got ",
          projection.shape());
  const int64_t features = projection.dim(0);
  const DType sums = sum_type(q.dtype());
  require_tensor(op, "projection", projection, {features, head_dim}, sums);
  require_tensor(op, "sums of the context", context.sums, {cells, heads, features, head_dim}, sums);
  require_tensor(op, "mass of the context", context.mass, {cells, heads, features}, sums);
  require_tensor(op, "largest of the context", context.largest, {cells}, sums);
  require_tensor(op, "peak of the context", context.peak, {cells}, DType::i64);
  return {packing, heads, head_dim, features, options};
}

namespace {

using namespace favor;

// The definition.

// One head of one cell in plain loops. u and g [features] are its own.
template <class T>
struct Definition {
  const Problem& problem;
  int64_t cell;
  int64_t head;
  const T* projection;
  T* u;
  T* g;

  int64_t tokens() const { return problem.packing.length(cell); }
  int64_t at(int64_t token) const {
    return (problem.packing.begin(cell) + token) * problem.stride() + head * problem.head_dim;
  }
  T factor() const { return static_cast<T>(problem.factor()); }
  T floor() const { return static_cast<T>(problem.floor()); }
  T product(const T* a, const T* b, int64_t n) const {
    T sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
    return sum;
  }
  // u of a token.
  void project(const T* x) const {
    for (int64_t j = 0; j < problem.features; ++j)
      u[j] = factor() * product(x, projection + j * problem.head_dim, problem.head_dim);
  }
  int64_t first_largest() const { return std::max_element(u, u + problem.features) - u; }
  // u becomes the features of the token without the floor.
  void activate(const T* x, T shift) const {
    if (problem.relu()) {
      for (int64_t j = 0; j < problem.features; ++j)
        if (u[j] < 0) u[j] = 0;  // NaN stays
      return;
    }
    const T half = factor() * factor() / 2 * product(x, x, problem.head_dim);
    for (int64_t j = 0; j < problem.features; ++j) u[j] = std::exp(u[j] - half - shift);
  }
  // What a gradient of psi meets on its way to u, from the feature without the floor.
  T slope(T feature) const { return problem.relu() ? static_cast<T>(feature > 0) : feature; }
  // dx from g, the gradient of u before that of the maximum, which has `top` (below 0: elsewhere).
  // Returns the sum of g, which is the gradient of -s(x); relu has none of that: 0.
  T store_gradient(const T* x, int64_t top, T* dx) const {
    T total = 0;
    if (!problem.relu())
      for (int64_t j = 0; j < problem.features; ++j) total += g[j];
    if (top >= 0) g[top] -= total;
    for (int64_t d = 0; d < problem.head_dim; ++d) {
      T sum = 0;
      for (int64_t j = 0; j < problem.features; ++j)
        sum += g[j] * projection[j * problem.head_dim + d];
      dx[d] = factor() * (sum - total * factor() * x[d]);
    }
    return total;
  }

  Peak<T> key_peak(const T* k) const {
    Peak<T> best;
    for (int64_t m = 0; m < tokens(); ++m) {
      project(k + at(m));
      const int64_t top = first_largest();
      best.take(u[top], (m * problem.heads + head) * problem.features + top);
    }
    return best;
  }
  void sum_keys(const T* k, const T* v, T largest, T* sums, T* mass) const {
    std::fill_n(sums, problem.area(), T(0));
    std::fill_n(mass, problem.features, T(0));
    for (int64_t m = 0; m < tokens(); ++m) {
      project(k + at(m));
      activate(k + at(m), largest);
      for (int64_t j = 0; j < problem.features; ++j) {
        const T psi = u[j] + floor();
        mass[j] += psi;
        for (int64_t d = 0; d < problem.head_dim; ++d)
          sums[j * problem.head_dim + d] += psi * v[at(m) + d];
      }
    }
  }
  void queries(const T* q, const T* sums, const T* mass, T* out) const {
    for (int64_t i = 0; i < tokens(); ++i) {
      project(q + at(i));
      activate(q + at(i), u[first_largest()]);
      for (int64_t j = 0; j < problem.features; ++j) u[j] += floor();
      const T normaliser = product(u, mass, problem.features);
      for (int64_t d = 0; d < problem.head_dim; ++d) {
        T sum = 0;
        for (int64_t j = 0; j < problem.features; ++j) sum += u[j] * sums[j * problem.head_dim + d];
        out[at(i) + d] = sum / normaliser;
      }
    }
  }

  // Null: not wanted; dsums and dmass together.
  void query_gradient(const T* q, const T* out, const T* dout, const T* sums, const T* mass, T* dq,
                      T* dsums, T* dmass) const {
    if (dsums) {
      std::fill_n(dsums, problem.area(), T(0));
      std::fill_n(dmass, problem.features, T(0));
    }
    for (int64_t i = 0; i < tokens(); ++i) {
      const T* want = dout + at(i);
      project(q + at(i));
      const int64_t top = first_largest();
      activate(q + at(i), u[top]);
      T normaliser = 0;
      for (int64_t j = 0; j < problem.features; ++j) normaliser += (u[j] + floor()) * mass[j];
      const T along = product(want, out + at(i), problem.head_dim);
      for (int64_t j = 0; j < problem.features; ++j) {
        const T psi = u[j] + floor();
        const T* sum = sums + j * problem.head_dim;
        g[j] = slope(u[j]) * (product(sum, want, problem.head_dim) - along * mass[j]) / normaliser;
        if (!dsums) continue;
        dmass[j] -= psi * along / normaliser;
        for (int64_t d = 0; d < problem.head_dim; ++d)
          dsums[j * problem.head_dim + d] += psi * want[d] / normaliser;
      }
      if (dq) store_gradient(q + at(i), top, dq + at(i));
    }
  }
  // Returns the sum of g over keys and features.
  T key_gradient(const T* k, const T* v, T largest, const T* dsums, const T* dmass, T* dk,
                 T* dv) const {
    T total = 0;
    for (int64_t m = 0; m < tokens(); ++m) {
      project(k + at(m));
      activate(k + at(m), largest);
      for (int64_t j = 0; j < problem.features; ++j)
        g[j] = slope(u[j]) *
               (product(dsums + j * problem.head_dim, v + at(m), problem.head_dim) + dmass[j]);
      if (dv)
        for (int64_t d = 0; d < problem.head_dim; ++d) {
          T sum = 0;
          for (int64_t j = 0; j < problem.features; ++j)
            sum += (u[j] + floor()) * dsums[j * problem.head_dim + d];
          dv[at(m) + d] = sum;
        }
      if (dk) total += store_gradient(k + at(m), -1, dk + at(m));
    }
    return total;
  }
  // weights [features]: the sum over queries of psi(q) / (psi(q) . mass).
  void received(const T* q, const T* k, T largest, const T* mass, T* weights, T* to) const {
    std::fill_n(weights, problem.features, T(0));
    for (int64_t i = 0; i < tokens(); ++i) {
      project(q + at(i));
      activate(q + at(i), u[first_largest()]);
      for (int64_t j = 0; j < problem.features; ++j) u[j] += floor();
      const T normaliser = product(u, mass, problem.features);
      for (int64_t j = 0; j < problem.features; ++j) weights[j] += u[j] / normaliser;
    }
    for (int64_t m = 0; m < tokens(); ++m) {
      project(k + at(m));
      activate(k + at(m), largest);
      for (int64_t j = 0; j < problem.features; ++j) u[j] += floor();
      to[m] = product(u, weights, problem.features);
    }
  }
};

template <class T>
Operands<T> operands(const ConstTensorView& q, const ConstTensorView& k, const ConstTensorView& v,
                     const ConstTensorView& projection, const FavorContext& context) {
  return {q.as<T>(),
          k.as<T>(),
          v.as<T>(),
          projection.as<T>(),
          context.sums.as<T>(),
          context.mass.as<T>(),
          context.largest.as<T>(),
          context.peak.as<int64_t>(),
          nullptr};
}

// Runs body(definition, unit) for every (cell, head).
template <class T, class Body>
void for_each_head(Context& ctx, const Problem& problem, const T* projection, Body&& body) {
  Arena::Scope scratch(ctx.scratch());
  T* features =
      scratch.take(Shape{problem.units(), 2, problem.features}, DTypeOf<T>::value).template as<T>();
  parallel_for(ctx, problem.units(), [&](int64_t unit) {
    T* own = features + 2 * unit * problem.features;
    body(Definition<T>{problem, unit / problem.heads, unit % problem.heads, projection, own,
                       own + problem.features},
         unit);
  });
}

template <class T>
void defined_forward(Context& ctx, const Problem& problem, const Operands<T>& x) {
  Arena::Scope scratch(ctx.scratch());
  T* values = scratch.take(Shape{problem.units()}, DTypeOf<T>::value).template as<T>();
  auto* at = scratch.take(Shape{problem.units()}, DType::i64).template as<int64_t>();
  if (!problem.relu())
    for_each_head(ctx, problem, x.projection, [&](const Definition<T>& head, int64_t unit) {
      const Peak<T> best = head.key_peak(x.k);
      values[unit] = best.value;
      at[unit] = best.at;
    });
  settle_stabiliser(
      problem, values, at, [&](int64_t cell) { return cell * problem.heads; }, x.largest, x.peak);
  for_each_head(ctx, problem, x.projection, [&](const Definition<T>& head, int64_t unit) {
    T* sums = x.sums + unit * problem.area();
    T* mass = x.mass + unit * problem.features;
    head.sum_keys(x.k, x.v, x.largest[head.cell], sums, mass);
    head.queries(x.q, sums, mass, x.out);
  });
}

template <class T>
void defined_backward(Context& ctx, const Problem& problem, const Operands<T>& x) {
  Arena::Scope scratch(ctx.scratch());
  const auto take = [&](int64_t n) {
    return scratch.take(Shape{n}, DTypeOf<T>::value).template as<T>();
  };
  T* all_dsums = x.keys_wanted() ? take(problem.units() * problem.area()) : nullptr;
  T* all_dmass = x.keys_wanted() ? take(problem.units() * problem.features) : nullptr;
  T* totals = take(problem.units());
  for_each_head(ctx, problem, x.projection, [&](const Definition<T>& head, int64_t unit) {
    T* dsums = all_dsums ? all_dsums + unit * problem.area() : nullptr;
    T* dmass = all_dmass ? all_dmass + unit * problem.features : nullptr;
    head.query_gradient(x.q, x.out, x.dout, x.sums + unit * problem.area(),
                        x.mass + unit * problem.features, x.dq, dsums, dmass);
    if (x.keys_wanted())
      totals[unit] = head.key_gradient(x.k, x.v, x.largest[head.cell], dsums, dmass, x.dk, x.dv);
  });
  if (x.dk)
    add_peak_gradient(
        problem, totals, [&](int64_t cell) { return cell * problem.heads; }, x.peak, x.projection,
        x.dk);
}

// to [heads, tokens]
template <class T>
void defined_received(Context& ctx, const Problem& problem, const Operands<T>& x, T* to) {
  for_each_head(ctx, problem, x.projection, [&](const Definition<T>& head, int64_t unit) {
    head.received(x.q, x.k, x.largest[head.cell], x.mass + unit * problem.features, head.g,
                  to + head.head * problem.packing.tokens() + problem.packing.begin(head.cell));
  });
}

}  // namespace

FavorContext FavorContext::take(Arena& arena, int64_t cells, int64_t heads, int64_t features,
                                int64_t head_dim, DType q) {
  const DType type = sum_type(q);
  return {.sums = arena.take({cells, heads, features, head_dim}, type),
          .mass = arena.take({cells, heads, features}, type),
          .largest = arena.take({cells}, type),
          .peak = arena.take({cells}, DType::i64)};
}

void favor_attention(Context& ctx, ConstTensorView q, ConstTensorView k, ConstTensorView v,
                     const Packing& packing, int64_t heads, ConstTensorView projection,
                     FavorOptions options, TensorView out, const FavorContext& context) {
  const char* op = "favor_attention";
  const Problem problem = check(op, ctx, q, k, v, packing, heads, projection, options, context);
  ctx.require_here(op, out);
  require_tensor(op, "out", out, q.shape(), q.dtype());
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda())
      return cuda::favor_attention(ctx, q, k, v, packing, heads, projection, options, out, context);
  }
  visit_real(q.dtype(), [&]<class T>(Type<T>) {
    Operands<T> x = operands<T>(q, k, v, projection, context);
    x.out = out.as<T>();
    if constexpr (std::is_same_v<T, float>)
      if (!ctx.reference()) return fast_forward(ctx, problem, x);
    defined_forward(ctx, problem, x);
  });
}

void favor_attention_backward(Context& ctx, ConstTensorView q, ConstTensorView k, ConstTensorView v,
                              ConstTensorView out, ConstTensorView dout, const Packing& packing,
                              int64_t heads, ConstTensorView projection, FavorOptions options,
                              const FavorContext& context, TensorView dq, TensorView dk,
                              TensorView dv) {
  const char* op = "favor_attention_backward";
  const Problem problem = check(op, ctx, q, k, v, packing, heads, projection, options, context);
  ctx.require_here(op, out, dout, dq, dk, dv);
  require_tensor(op, "out", out, q.shape(), q.dtype());
  require_tensor(op, "dout", dout, q.shape(), q.dtype());
  require_optional(op, "dq", dq, q.shape(), q.dtype());
  require_optional(op, "dk", dk, q.shape(), q.dtype());
  require_optional(op, "dv", dv, q.shape(), q.dtype());
  if (dq.empty() && dk.empty() && dv.empty()) return;
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda())
      return cuda::favor_attention_backward(ctx, q, k, v, out, dout, packing, heads, projection,
                                            options, context, dq, dk, dv);
  }
  visit_real(q.dtype(), [&]<class T>(Type<T>) {
    Operands<T> x = operands<T>(q, k, v, projection, context);
    x.out = const_cast<T*>(out.as<T>());
    x.dout = dout.as<T>();
    x.dq = data_or_null<T>(dq);
    x.dk = data_or_null<T>(dk);
    x.dv = data_or_null<T>(dv);
    if constexpr (std::is_same_v<T, float>)
      if (!ctx.reference()) return fast_backward(ctx, problem, x);
    defined_backward(ctx, problem, x);
  });
}

void favor::received(Context& ctx, const Problem& problem, const ConstTensorView& q,
                     const ConstTensorView& k, const ConstTensorView& projection,
                     const FavorContext& context, const TensorView& received) {
  visit_real(q.dtype(), [&]<class T>(Type<T>) {
    // k once more where the values would be, which play no part.
    const Operands<T> x = operands<T>(q, k, k, projection, context);
    if constexpr (std::is_same_v<T, float>)
      if (!ctx.reference()) return fast_received(ctx, problem, x, received.as<T>());
    defined_received(ctx, problem, x, received.as<T>());
  });
}

}  // namespace scgraft
