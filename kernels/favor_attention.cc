// SPDX-License-Identifier: Apache-2.0
#include "kernels/favor_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "kernels/favor_attention_simd.h"
#include "kernels/require_tensor.h"
#include "runtime/cpu.h"
#include "runtime/parallel.h"

namespace scgraft {
namespace {

// What both directions agree on.
struct Problem {
  const Packing& packing;
  int64_t heads;
  int64_t head_dim;
  int64_t features;
  FavorStabiliser stabiliser;

  int64_t units() const { return packing.cells() * heads; }
  int64_t stride() const { return heads * head_dim; }
  // Elements of `sums` of one (cell, head).
  int64_t area() const { return features * head_dim; }
  double factor() const { return std::pow(static_cast<double>(head_dim), -0.25); }
};

Problem check(const char* op, Context& ctx, const ConstTensorView& q, const ConstTensorView& k,
              const ConstTensorView& v, const Packing& packing, int64_t heads,
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
  return {packing, heads, head_dim, features, options.stabiliser};
}

// The stabiliser.

// The largest u of some keys and where in the cell it is, the first of equal ones.
template <class T>
struct Peak {
  T value = -std::numeric_limits<T>::infinity();
  int64_t at = -1;

  void take(T other, int64_t other_at) {
    if (other_at < 0) return;
    if (at >= 0 && !(other > value) && !(other == value && other_at < at)) return;
    value = other;
    at = other_at;
  }
};

// Fills `largest` and `peak` of the context. The cell owns the parts [first(cell), first(cell +
// 1)).
template <class T, class First>
void settle_stabiliser(const Problem& problem, const T* values, const int64_t* at, First&& first,
                       T* largest, int64_t* peak) {
  const int64_t cells = problem.packing.cells();
  for (int64_t cell = 0; cell < cells; ++cell) {
    Peak<T> best;
    for (int64_t part = first(cell); part < first(cell + 1); ++part)
      best.take(values[part], at[part]);
    largest[cell] = best.value;
    peak[cell] = best.at;
  }
  if (problem.stabiliser == FavorStabiliser::cell) return;
  int64_t owner = -1;
  for (int64_t cell = 0; cell < cells; ++cell)
    if (peak[cell] >= 0 && (owner < 0 || largest[cell] > largest[owner])) owner = cell;
  if (owner < 0) return;
  const T value = largest[owner];
  for (int64_t cell = 0; cell < cells; ++cell) {
    largest[cell] = value;
    if (cell != owner) peak[cell] = -1;
  }
}

// Gradient of the stabiliser: totals, the sums of g of the parts, go to the key of the peak.
template <class T, class First>
void add_peak_gradient(const Problem& problem, const T* totals, First&& first, const int64_t* peak,
                       const T* projection, T* dk) {
  const int64_t cells = problem.packing.cells();
  const bool whole_batch = problem.stabiliser == FavorStabiliser::batch;
  for (int64_t cell = 0; cell < cells; ++cell) {
    if (peak[cell] < 0) continue;
    T total = 0;
    for (int64_t c = whole_batch ? 0 : cell; c < (whole_batch ? cells : cell + 1); ++c)
      for (int64_t part = first(c); part < first(c + 1); ++part) total += totals[part];
    const int64_t feature = peak[cell] % problem.features;
    const int64_t row = peak[cell] / problem.features;  // token * heads + head
    T* gradient = dk + problem.packing.begin(cell) * problem.stride() + row * problem.head_dim;
    const T* direction = projection + feature * problem.head_dim;
    for (int64_t d = 0; d < problem.head_dim; ++d)
      gradient[d] -= static_cast<T>(problem.factor()) * total * direction[d];
  }
}

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
  static constexpr T floor() { return static_cast<T>(kFavorFloor); }
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
  void exponentials(const T* x, T shift) const {
    const T half = factor() * factor() / 2 * product(x, x, problem.head_dim);
    for (int64_t j = 0; j < problem.features; ++j) u[j] = std::exp(u[j] - half - shift);
  }
  // dx from g, the gradient of u before that of the maximum, which has `top` (below 0: elsewhere).
  // Returns the sum of g.
  T store_gradient(const T* x, int64_t top, T* dx) const {
    T total = 0;
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
      exponentials(k + at(m), largest);
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
      exponentials(q + at(i), u[first_largest()]);
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
      exponentials(q + at(i), u[top]);
      T normaliser = 0;
      for (int64_t j = 0; j < problem.features; ++j) normaliser += (u[j] + floor()) * mass[j];
      const T along = product(want, out + at(i), problem.head_dim);
      for (int64_t j = 0; j < problem.features; ++j) {
        const T psi = u[j] + floor();
        const T* sum = sums + j * problem.head_dim;
        g[j] = u[j] * (product(sum, want, problem.head_dim) - along * mass[j]) / normaliser;
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
      exponentials(k + at(m), largest);
      for (int64_t j = 0; j < problem.features; ++j)
        g[j] =
            u[j] * (product(dsums + j * problem.head_dim, v + at(m), problem.head_dim) + dmass[j]);
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
      exponentials(q + at(i), u[first_largest()]);
      for (int64_t j = 0; j < problem.features; ++j) u[j] += floor();
      const T normaliser = product(u, mass, problem.features);
      for (int64_t j = 0; j < problem.features; ++j) weights[j] += u[j] / normaliser;
    }
    for (int64_t m = 0; m < tokens(); ++m) {
      project(k + at(m));
      exponentials(k + at(m), largest);
      for (int64_t j = 0; j < problem.features; ++j) u[j] += floor();
      to[m] = product(u, weights, problem.features);
    }
  }
};

// Tensors of one call as plain pointers; gradients that are null are not wanted.
template <class T>
struct Operands {
  const T *q, *k, *v, *projection;
  T *sums, *mass, *largest;
  int64_t* peak;
  T* out;
  const T* dout = nullptr;
  T *dq = nullptr, *dk = nullptr, *dv = nullptr;

  bool keys_wanted() const { return dk || dv; }
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

// The fast path.

const FavorSimd& simd() {
#if defined(__x86_64__)
  if (cpu_level() == CpuLevel::v4) return v4::favor_simd;
#endif
  return v3::favor_simd;
}

// Spans of all cells, in order; a unit of work is one head of one span.
class Spans {
 public:
  Spans(Arena::Scope& scratch, const Problem& problem) : problem_(problem) {
    const int64_t cells = problem.packing.cells();
    first_ = scratch.take(Shape{cells + 1}, DType::i64).as<int64_t>();
    first_[0] = 0;
    for (int64_t cell = 0; cell < cells; ++cell)
      first_[cell + 1] =
          first_[cell] + (problem.packing.length(cell) + kFavorSpan - 1) / kFavorSpan;
  }
  int64_t units() const { return first_[problem_.packing.cells()] * problem_.heads; }
  // The units of a cell are [first(cell), first(cell + 1)), all heads of a span together.
  int64_t first(int64_t cell) const { return first_[cell] * problem_.heads; }
  int64_t count(int64_t cell) const { return first_[cell + 1] - first_[cell]; }

  struct Unit {
    int64_t cell, head;
    int64_t begin;  // token within the cell
    int64_t rows;
  };
  Unit unit(int64_t index) const {
    const int64_t span = index / problem_.heads;
    const int64_t cells = problem_.packing.cells();
    // The last cell that begins at or before the span: cells without tokens come before it.
    const int64_t cell = std::upper_bound(first_, first_ + cells, span) - first_ - 1;
    const int64_t begin = (span - first_[cell]) * kFavorSpan;
    return {cell, index % problem_.heads, begin,
            std::min(kFavorSpan, problem_.packing.length(cell) - begin)};
  }

 private:
  const Problem& problem_;
  int64_t* first_;
};

// What the units of a call share, and scratch of every thread.
class FastCall {
 public:
  FastCall(Context& ctx, const Problem& problem, const float* projection)
      : problem_(problem),
        scratch_(ctx.scratch()),
        spans(scratch_, problem),
        width(simd().width(problem.head_dim)),
        wide(simd().width(problem.features)),
        thread_floats_((simd().scratch(problem.features, problem.head_dim) + 15) / 16 * 16),
        threads_(take(ctx.threads() * thread_floats_)),
        projection_(take(simd().packed(problem.features, problem.head_dim))) {
    simd().pack(projection, problem.features, problem.head_dim, projection_);
  }
  float* take(int64_t floats) { return scratch_.take(Shape{floats}, DType::f32).as<float>(); }
  int64_t* take_i64(int64_t n) { return scratch_.take(Shape{n}, DType::i64).as<int64_t>(); }
  float* mine() const { return threads_ + thread_index() * thread_floats_; }

  FavorHead head(const Spans::Unit& unit) const {
    return {unit.rows,
            problem_.stride(),
            problem_.head_dim,
            problem_.features,
            static_cast<float>(problem_.factor()),
            projection_};
  }
  // Offset of the first row of a unit in a tensor like q, and of its (cell, head) among units.
  int64_t at(const Spans::Unit& unit) const {
    return (problem_.packing.begin(unit.cell) + unit.begin) * problem_.stride() +
           unit.head * problem_.head_dim;
  }
  int64_t owner(const Spans::Unit& unit) const { return unit.cell * problem_.heads + unit.head; }

 private:
  const Problem& problem_;
  Arena::Scope scratch_;

 public:
  const Spans spans;
  const int64_t width, wide;  // of a row of head_dim and of features in what units write

 private:
  int64_t thread_floats_;
  float* threads_;
  float* projection_;
};

void fast_forward(Context& ctx, const Problem& problem, const Operands<float>& x) {
  FastCall call(ctx, problem, x.projection);
  const int64_t units = call.spans.units(), part = problem.features * call.width;
  float* sums = call.take(units * part);
  float* mass = call.take(units * call.wide);
  float* values = call.take(units * call.width);
  float* shift = call.take(units);
  int64_t* peak = call.take_i64(units);
  parallel_for(ctx, units, [&](int64_t index) {
    const Spans::Unit unit = call.spans.unit(index);
    simd().keys({.head = call.head(unit),
                 .k = x.k + call.at(unit),
                 .v = x.v + call.at(unit),
                 .sums = sums + index * part,
                 .mass = mass + index * call.wide,
                 .values = values + index * call.width,
                 .shift = shift + index,
                 .peak = peak + index},
                call.mine());
    const int64_t token = unit.begin + peak[index] / problem.features;
    peak[index] =
        (token * problem.heads + unit.head) * problem.features + peak[index] % problem.features;
  });
  settle_stabiliser(
      problem, shift, peak, [&](int64_t cell) { return call.spans.first(cell); }, x.largest,
      x.peak);

  // The floor is added here, where the shift of every span is known: sum_m (e_m + floor) v_m.
  parallel_for(ctx, problem.units(), [&](int64_t owner) {
    const int64_t cell = owner / problem.heads, head = owner % problem.heads;
    const auto floor = static_cast<float>(kFavorFloor);
    float* own_sums = x.sums + owner * problem.area();
    float* own_mass = x.mass + owner * problem.features;
    std::fill_n(own_sums, problem.area(), 0.0f);
    std::fill_n(own_mass, problem.features,
                floor * static_cast<float>(problem.packing.length(cell)));
    for (int64_t span = 0; span < call.spans.count(cell); ++span) {
      const int64_t index = call.spans.first(cell) + span * problem.heads + head;
      const float factor = std::exp(shift[index] - x.largest[cell]);
      const float* value = values + index * call.width;
      for (int64_t j = 0; j < problem.features; ++j) {
        const float* from = sums + index * part + j * call.width;
        float* to = own_sums + j * problem.head_dim;
#pragma omp simd
        for (int64_t d = 0; d < problem.head_dim; ++d) to[d] += factor * from[d] + floor * value[d];
        own_mass[j] += factor * mass[index * call.wide + j];
      }
    }
  });

  parallel_for(ctx, units, [&](int64_t index) {
    const Spans::Unit unit = call.spans.unit(index);
    simd().queries({.head = call.head(unit),
                    .q = x.q + call.at(unit),
                    .sums = x.sums + call.owner(unit) * problem.area(),
                    .mass = x.mass + call.owner(unit) * problem.features,
                    .out = x.out + call.at(unit)},
                   call.mine());
  });
}

void fast_backward(Context& ctx, const Problem& problem, const Operands<float>& x) {
  FastCall call(ctx, problem, x.projection);
  const int64_t units = call.spans.units(), part = problem.features * call.width;
  const bool keys = x.keys_wanted();
  float* span_sums = keys ? call.take(units * part) : nullptr;
  float* span_mass = keys ? call.take(units * call.wide) : nullptr;
  parallel_for(ctx, units, [&](int64_t index) {
    const Spans::Unit unit = call.spans.unit(index);
    simd().query_gradient({.head = call.head(unit),
                           .q = x.q + call.at(unit),
                           .out = x.out + call.at(unit),
                           .dout = x.dout + call.at(unit),
                           .sums = x.sums + call.owner(unit) * problem.area(),
                           .mass = x.mass + call.owner(unit) * problem.features,
                           .dq = x.dq ? x.dq + call.at(unit) : nullptr,
                           .dsums = keys ? span_sums + index * part : nullptr,
                           .dmass = keys ? span_mass + index * call.wide : nullptr},
                          call.mine());
  });
  if (!keys) return;

  float* dsums = call.take(problem.units() * problem.area());
  float* dmass = call.take(problem.units() * problem.features);
  parallel_for(ctx, problem.units(), [&](int64_t owner) {
    const int64_t cell = owner / problem.heads, head = owner % problem.heads;
    float* own_sums = dsums + owner * problem.area();
    float* own_mass = dmass + owner * problem.features;
    std::fill_n(own_sums, problem.area(), 0.0f);
    std::fill_n(own_mass, problem.features, 0.0f);
    for (int64_t span = 0; span < call.spans.count(cell); ++span) {
      const int64_t index = call.spans.first(cell) + span * problem.heads + head;
      for (int64_t j = 0; j < problem.features; ++j) {
        const float* from = span_sums + index * part + j * call.width;
        float* to = own_sums + j * problem.head_dim;
#pragma omp simd
        for (int64_t d = 0; d < problem.head_dim; ++d) to[d] += from[d];
        own_mass[j] += span_mass[index * call.wide + j];
      }
    }
  });

  float* totals = call.take(units);
  parallel_for(ctx, units, [&](int64_t index) {
    const Spans::Unit unit = call.spans.unit(index);
    simd().key_gradient({.head = call.head(unit),
                         .k = x.k + call.at(unit),
                         .v = x.v + call.at(unit),
                         .largest = x.largest[unit.cell],
                         .dsums = dsums + call.owner(unit) * problem.area(),
                         .dmass = dmass + call.owner(unit) * problem.features,
                         .dk = x.dk ? x.dk + call.at(unit) : nullptr,
                         .dv = x.dv ? x.dv + call.at(unit) : nullptr,
                         .total = totals + index},
                        call.mine());
  });
  if (x.dk)
    add_peak_gradient(
        problem, totals, [&](int64_t cell) { return call.spans.first(cell); }, x.peak, x.projection,
        x.dk);
}

void fast_received(Context& ctx, const Problem& problem, const Operands<float>& x, float* to) {
  FastCall call(ctx, problem, x.projection);
  const int64_t units = call.spans.units();
  float* parts = call.take(units * call.wide);
  float* weights = call.take(problem.units() * problem.features);
  parallel_for(ctx, units, [&](int64_t index) {
    const Spans::Unit unit = call.spans.unit(index);
    simd().query_weights({.head = call.head(unit),
                          .q = x.q + call.at(unit),
                          .mass = x.mass + call.owner(unit) * problem.features,
                          .weights = parts + index * call.wide},
                         call.mine());
  });
  parallel_for(ctx, problem.units(), [&](int64_t owner) {
    const int64_t cell = owner / problem.heads, head = owner % problem.heads;
    float* own = weights + owner * problem.features;
    std::fill_n(own, problem.features, 0.0f);
    for (int64_t span = 0; span < call.spans.count(cell); ++span) {
      const float* from =
          parts + (call.spans.first(cell) + span * problem.heads + head) * call.wide;
      for (int64_t j = 0; j < problem.features; ++j) own[j] += from[j];
    }
  });
  parallel_for(ctx, units, [&](int64_t index) {
    const Spans::Unit unit = call.spans.unit(index);
    const int64_t token = problem.packing.begin(unit.cell) + unit.begin;
    simd().received({.head = call.head(unit),
                     .k = x.k + call.at(unit),
                     .largest = x.largest[unit.cell],
                     .weights = weights + call.owner(unit) * problem.features,
                     .received = to + unit.head * problem.packing.tokens() + token},
                    call.mine());
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

void favor_attention_received(Context& ctx, ConstTensorView q, ConstTensorView k,
                              const Packing& packing, int64_t heads, ConstTensorView projection,
                              FavorOptions options, const FavorContext& context,
                              TensorView received) {
  const char* op = "favor_attention_received";
  // k once more where the values would be, which play no part.
  const Problem problem = check(op, ctx, q, k, k, packing, heads, projection, options, context);
  ctx.require_here(op, received);
  ctx.require_cpu();
  require_tensor(op, "received", received, {heads, q.dim(0)}, q.dtype());
  visit_real(q.dtype(), [&]<class T>(Type<T>) {
    const Operands<T> x = operands<T>(q, k, k, projection, context);
    if constexpr (std::is_same_v<T, float>)
      if (!ctx.reference()) return fast_received(ctx, problem, x, received.as<T>());
    defined_received(ctx, problem, x, received.as<T>());
  });
}

}  // namespace scgraft
