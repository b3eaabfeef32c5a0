// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels/favor_attention.h"
#include "kernels/favor_attention_simd.h"

// What favor_attention.cc, which has the checks and the definition, favor_attention_fast.cc and
// favor_attention_received.cc share. Of no use to others.
namespace scgraft::favor {

// What both directions agree on.
struct Problem {
  const Packing& packing;
  int64_t heads;
  int64_t head_dim;
  int64_t features;
  FavorOptions options;

  int64_t units() const { return packing.cells() * heads; }
  int64_t stride() const { return heads * head_dim; }
  // Elements of `sums` of one (cell, head).
  int64_t area() const { return features * head_dim; }
  double factor() const { return std::pow(static_cast<double>(head_dim), -0.25); }
  bool relu() const { return options.kernel == FavorKernel::relu; }
  double floor() const { return relu() ? kFavorReluFloor : kFavorFloor; }
};

// Throws as favor_attention() does.
Problem check(const char* op, Context& ctx, const ConstTensorView& q, const ConstTensorView& k,
              const ConstTensorView& v, const Packing& packing, int64_t heads,
              const ConstTensorView& projection, FavorOptions options, const FavorContext& context);

// What favor_attention_received() does on the CPU.
void received(Context& ctx, const Problem& problem, const ConstTensorView& q,
              const ConstTensorView& k, const ConstTensorView& projection,
              const FavorContext& context, const TensorView& received);

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
// 1)). Relu features have no stabiliser, and `values` and `at` are not read.
template <class T, class First>
void settle_stabiliser(const Problem& problem, const T* values, const int64_t* at, First&& first,
                       T* largest, int64_t* peak) {
  const int64_t cells = problem.packing.cells();
  if (problem.relu()) {
    std::fill_n(largest, cells, T(0));
    std::fill_n(peak, cells, int64_t{-1});
    return;
  }
  for (int64_t cell = 0; cell < cells; ++cell) {
    Peak<T> best;
    for (int64_t part = first(cell); part < first(cell + 1); ++part)
      best.take(values[part], at[part]);
    largest[cell] = best.value;
    peak[cell] = best.at;
  }
  if (problem.options.stabiliser == FavorStabiliser::cell) return;
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
  const bool whole_batch = problem.options.stabiliser == FavorStabiliser::batch;
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

// The fast path.

void fast_forward(Context& ctx, const Problem& problem, const Operands<float>& x);
void fast_backward(Context& ctx, const Problem& problem, const Operands<float>& x);
// to [heads, tokens]
void fast_received(Context& ctx, const Problem& problem, const Operands<float>& x, float* to);

}  // namespace scgraft::favor
