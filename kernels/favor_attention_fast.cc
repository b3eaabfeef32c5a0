// SPDX-License-Identifier: Apache-2.0
#include "kernels/favor_attention_fast.h"

#include <algorithm>
#include <cmath>

#include "kernels/favor_attention_simd.h"
#include "runtime/cpu.h"
#include "runtime/parallel.h"

namespace scgraft::favor {
namespace {

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
            projection_,
            problem_.relu(),
            static_cast<float>(problem_.floor())};
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

}  // namespace

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
    const auto floor = static_cast<float>(problem.floor());
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

}  // namespace scgraft::favor
