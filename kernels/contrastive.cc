// SPDX-License-Identifier: Apache-2.0
#include "kernels/contrastive.h"

#include <algorithm>
#include <cmath>

#include "kernels/require_tensor.h"
#include "kernels/unit_rows.h"
#include "runtime/parallel.h"

namespace scgraft {
namespace {

constexpr double kFloor = 1e-8;

// What both passes are made of: rows of unit length, and d loss / d cosine of every pair.
template <class T>
struct Pairs {
  Array<T, 2> unit1, unit2;  // [cells, dim]
  T* norm1;
  T* norm2;
  Array<T, 2> s;  // [cells, cells]
};

// Row i of the score matrix becomes the gradient by its cosines; its share of the loss is returned.
template <class T>
T score_row(const Pairs<T>& pairs, int64_t i, T temperature, T scale) {
  const int64_t n = pairs.s.dim(0);
  T* s = pairs.s.row(i);
  T largest = 0;
  for (int64_t j = 0; j < n; ++j) {
    s[j] = ordered_dot(pairs.unit1.row(i), pairs.unit2.row(j), pairs.unit1.dim(1)) / temperature;
    largest = j == 0 ? s[j] : std::max(largest, s[j]);
  }
  const T own = s[i];
  T sum = 0;
  for (int64_t j = 0; j < n; ++j) sum += std::exp(s[j] - largest);
  for (int64_t j = 0; j < n; ++j)
    s[j] = scale * (std::exp(s[j] - largest) / sum - (i == j ? T(1) : T(0))) /
           (static_cast<T>(n) * temperature);
  return largest + std::log(sum) - own;
}

// dx[i] += through the norm of row i: sum over j of weight(i, j) * other[j], j in order.
template <class T, class Weight>
void add_gradient(Context& ctx, Array<T, 2> unit, const T* norm, Array<T, 2> other, Weight&& weight,
                  TensorView dx) {
  const int64_t n = unit.dim(0);
  const int64_t dim = unit.dim(1);
  Arena::Scope scratch(ctx.scratch());
  const auto sums = scratch.take({n, dim}, DTypeOf<T>::value).template as<T, 2>();
  const auto out = dx.as<T, 2>();
  parallel_for(ctx, n, [&](int64_t i) {
    T* row = sums.row(i);
    std::fill_n(row, dim, T(0));
    for (int64_t j = 0; j < n; ++j) {
      const T w = weight(i, j);
      const T* from = other.row(j);
#pragma omp simd
      for (int64_t d = 0; d < dim; ++d) row[d] += w * from[d];
    }
    add_unit_gradient(unit.row(i), row, norm[i], kFloor, dim, out.row(i));
  });
}

template <class T>
void contrastive_cpu(Context& ctx, Array<const T, 2> x1, Array<const T, 2> x2, T temperature,
                     T scale, T* loss, TensorView dx1, TensorView dx2) {
  const int64_t n = x1.dim(0);
  const int64_t dim = x1.dim(1);
  const DType type = DTypeOf<T>::value;
  Arena::Scope scratch(ctx.scratch());
  const auto matrix = [&](int64_t rows, int64_t columns) {
    return scratch.take({rows, columns}, type).template as<T, 2>();
  };
  const auto vector = [&] { return scratch.take({n}, type).template as<T>(); };
  const Pairs<T> pairs{matrix(n, dim), matrix(n, dim), vector(), vector(), matrix(n, n)};
  T* row_loss = vector();

  parallel_for(ctx, n, [&](int64_t i) {
    pairs.norm1[i] = unit_row(x1.row(i), dim, kFloor, pairs.unit1.row(i));
    pairs.norm2[i] = unit_row(x2.row(i), dim, kFloor, pairs.unit2.row(i));
  });
  parallel_for(ctx, n, [&](int64_t i) { row_loss[i] = score_row(pairs, i, temperature, scale); });
  T total = 0;
  for (int64_t i = 0; i < n; ++i) total += row_loss[i];
  *loss = n > 0 ? total / static_cast<T>(n) : T(0);

  // One after the other: both may be the same tensor.
  if (!dx1.empty())
    add_gradient(
        ctx, pairs.unit1, pairs.norm1, pairs.unit2,
        [&](int64_t i, int64_t j) { return pairs.s(i, j); }, dx1);
  if (!dx2.empty())
    add_gradient(
        ctx, pairs.unit2, pairs.norm2, pairs.unit1,
        [&](int64_t j, int64_t i) { return pairs.s(i, j); }, dx2);
}

}  // namespace

void contrastive(Context& ctx, ConstTensorView x1, ConstTensorView x2, double temperature,
                 double scale, TensorView loss, TensorView dx1, TensorView dx2) {
  const char* op = "contrastive";
  ctx.require_here(op, x1, x2, loss, dx1, dx2);
  require(x1.rank() == 2, op, ": x1 must be [cells, dim], got ", x1.shape());
  require_tensor(op, "x2", x2, x1.shape(), x1.dtype());
  require_tensor(op, "loss", loss, {1}, sum_type(x1.dtype()));
  require_optional(op, "dx1", dx1, x1.shape(), x1.dtype());
  require_optional(op, "dx2", dx2, x1.shape(), x1.dtype());
  require<ConfigError>(temperature > 0, op, ": the temperature must be above 0, got ", temperature);
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda())
      return cuda::contrastive(ctx, x1, x2, temperature, scale, loss, dx1, dx2);
  }
  visit_real(x1.dtype(), [&]<class T>(Type<T>) {
    contrastive_cpu<T>(ctx, x1.as<T, 2>(), x2.as<T, 2>(), T(temperature), T(scale), loss.as<T>(),
                       dx1, dx2);
  });
}

}  // namespace scgraft
