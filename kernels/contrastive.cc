// SPDX-License-Identifier: Apache-2.0
#include "kernels/contrastive.h"

#include <algorithm>
#include <cmath>

namespace scgraft {
namespace {

constexpr double kSmallestNorm = 1e-8;

// xhat = x / max(|x|, floor), row by row; returns the norms.
template <class T>
void normalise(Array<const T, 2> x, Array<T, 2> xhat, T* norm) {
  for (int64_t i = 0; i < x.dim(0); ++i) {
    T sum = 0;
    for (int64_t k = 0; k < x.dim(1); ++k) sum += x(i, k) * x(i, k);
    norm[i] = std::max(std::sqrt(sum), T(kSmallestNorm));
    for (int64_t k = 0; k < x.dim(1); ++k) xhat(i, k) = x(i, k) / norm[i];
  }
}

// dx += (dxhat - xhat (xhat . dxhat)) / norm for one row.
template <class T>
void add_through_norm(const T* xhat, const T* dxhat, T norm, int64_t dim, T* dx) {
  T along = 0;
  for (int64_t k = 0; k < dim; ++k) along += xhat[k] * dxhat[k];
  for (int64_t k = 0; k < dim; ++k) dx[k] += (dxhat[k] - xhat[k] * along) / norm;
}

template <class T>
void contrastive_cpu(Context& ctx, Array<const T, 2> x1, Array<const T, 2> x2, T temperature,
                     T scale, T* loss, TensorView dx1, TensorView dx2) {
  const int64_t n = x1.dim(0);
  const int64_t dim = x1.dim(1);
  const DType type = DTypeOf<T>::value;
  Arena::Scope scratch(ctx.scratch());
  const auto a = scratch.take({n, dim}, type).template as<T, 2>();
  const auto b = scratch.take({n, dim}, type).template as<T, 2>();
  const auto s = scratch.take({n, n}, type).template as<T, 2>();
  T* norm1 = scratch.take({n}, type).template as<T>();
  T* norm2 = scratch.take({n}, type).template as<T>();
  T* row = scratch.take({dim}, type).template as<T>();
  normalise(x1, a, norm1);
  normalise(x2, b, norm2);
  T total = 0;
  for (int64_t i = 0; i < n; ++i) {
    T largest = 0;
    for (int64_t j = 0; j < n; ++j) {
      T cosine = 0;
      for (int64_t k = 0; k < dim; ++k) cosine += a(i, k) * b(j, k);
      s(i, j) = cosine / temperature;
      largest = j == 0 ? s(i, j) : std::max(largest, s(i, j));
    }
    T sum = 0;
    for (int64_t j = 0; j < n; ++j) sum += std::exp(s(i, j) - largest);
    total += largest + std::log(sum) - s(i, i);
    // s becomes d loss / d cosine.
    for (int64_t j = 0; j < n; ++j)
      s(i, j) = scale * (std::exp(s(i, j) - largest) / sum - (i == j ? T(1) : T(0))) /
                (T(n) * temperature);
  }
  *loss = n > 0 ? total / T(n) : T(0);
  if (!dx1.empty()) {
    const auto out = dx1.as<T, 2>();
    for (int64_t i = 0; i < n; ++i) {
      std::fill(row, row + dim, T(0));
      for (int64_t j = 0; j < n; ++j)
        for (int64_t k = 0; k < dim; ++k) row[k] += s(i, j) * b(j, k);
      add_through_norm(a.row(i), row, norm1[i], dim, out.row(i));
    }
  }
  if (!dx2.empty()) {
    const auto out = dx2.as<T, 2>();
    for (int64_t j = 0; j < n; ++j) {
      std::fill(row, row + dim, T(0));
      for (int64_t i = 0; i < n; ++i)
        for (int64_t k = 0; k < dim; ++k) row[k] += s(i, j) * a(i, k);
      add_through_norm(b.row(j), row, norm2[j], dim, out.row(j));
    }
  }
}

}  // namespace

void contrastive(Context& ctx, ConstTensorView x1, ConstTensorView x2, double temperature,
                 double scale, TensorView loss, TensorView dx1, TensorView dx2) {
  ctx.require_here("contrastive", x1, x2, loss, dx1, dx2);
  require(x1.rank() == 2 && x1.shape() == x2.shape(), "contrastive: x1 and x2 must be [cells, dim] ",
          "of one shape, got ", x1.shape(), " and ", x2.shape());
  require<TypeError>(x1.dtype() == x2.dtype() && loss.dtype() == x1.dtype(), "contrastive: x1 is ",
                     x1.dtype(), ", x2 ", x2.dtype(), ", loss ", loss.dtype());
  require(loss.numel() == 1, "contrastive: loss must be [1], got ", loss.shape());
  for (const TensorView& d : {dx1, dx2})
    require(d.empty() || d.shape() == x1.shape(), "contrastive: a gradient must be ", x1.shape(),
            ", got ", d.shape());
  visit_real(x1.dtype(), [&]<class T>(Type<T>) {
    contrastive_cpu<T>(ctx, x1.as<T, 2>(), x2.as<T, 2>(), T(temperature), T(scale), loss.as<T>(),
                       dx1, dx2);
  });
}

}  // namespace scgraft
