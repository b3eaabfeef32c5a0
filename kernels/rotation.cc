// SPDX-License-Identifier: Apache-2.0
#include "kernels/rotation.h"

#include <algorithm>
#include <cmath>

#include "kernels/ordered_sum.h"
#include "kernels/require_tensor.h"
#include "kernels/rows.h"

namespace scgraft {
namespace {

void check_blocks(const char* op, const char* name, ConstTensorView q) {
  require(q.rank() == 3 && q.dim(1) == q.dim(2) && q.dim(1) >= 1 && q.dim(1) <= kRotationSize, op,
          ": ", name, " must be [blocks, n, n] with n from 1 to ", kRotationSize, ", got ",
          q.shape());
}

Shape triangles_of(ConstTensorView q) { return {q.dim(0), q.dim(1) * (q.dim(1) - 1) / 2}; }

// a [n, n] becomes its inverse; every pivot must be other than 0.
void invert(double* a, int64_t n) {
  for (int64_t k = 0; k < n; ++k) {
    double* row = a + k * n;
    const double scale = 1 / row[k];
    row[k] = 1;
    for (int64_t j = 0; j < n; ++j) row[j] *= scale;
    for (int64_t i = 0; i < n; ++i) {
      if (i == k) continue;
      double* to = a + i * n;
      const double factor = to[k];
      to[k] = 0;
      for (int64_t j = 0; j < n; ++j) to[j] -= factor * row[j];
    }
  }
}

// a: room of n * n numbers.
template <class T>
void cayley_block(const T* skew, int64_t n, double* a, T* q) {
  for (int64_t i = 0; i < n; ++i) {
    a[i * n + i] = 1;
    for (int64_t j = i + 1; j < n; ++j) {
      const auto s = static_cast<double>(skew[triangle_index(i, j, n)]);
      a[i * n + j] = s;
      a[j * n + i] = -s;
    }
  }
  invert(a, n);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j)
      q[i * n + j] = static_cast<T>(2 * a[i * n + j] - (i == j ? 1 : 0));
}

// c += a b, each [n, n].
template <class A, class B>
void add_product(const A* a, const B* b, int64_t n, double* c) {
  for (int64_t i = 0; i < n; ++i)
    for (int64_t k = 0; k < n; ++k) {
      const auto factor = static_cast<double>(a[i * n + k]);
      const B* row = b + k * n;
      double* to = c + i * n;
      for (int64_t j = 0; j < n; ++j) to[j] += factor * row[j];
    }
}

// room: of 3 n * n numbers.
template <class T>
void cayley_backward_block(const T* q, const T* dq, int64_t n, double* room, T* dskew) {
  double *p = room, *right = p + n * n, *m = right + n * n;  // I + Q^T, dq p, p dq p
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j)
      p[i * n + j] = static_cast<double>(q[j * n + i]) + (i == j ? 1 : 0);
  std::fill_n(right, 2 * n * n, 0.0);
  add_product(dq, p, n, right);
  add_product(p, right, n, m);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = i + 1; j < n; ++j)
      dskew[triangle_index(i, j, n)] += static_cast<T>(-0.5 * (m[i * n + j] - m[j * n + i]));
}

}  // namespace

void cayley(Context& ctx, ConstTensorView skew, TensorView q) {
  const char* op = "cayley";
  ctx.require_here(op, skew, q);
  check_blocks(op, "q", q);
  require_tensor(op, "skew", skew, triangles_of(q), q.dtype());
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda()) return cuda::cayley(ctx, skew, q);
  }
  visit_real(q.dtype(), [&]<class T>(Type<T>) {
    Arena::Scope scratch(ctx.scratch());
    const int64_t n = q.dim(1), each = skew.dim(1);
    double* room = scratch.take(q.shape(), DType::f64).as<double>();
    const T* from = skew.as<T>();
    T* to = q.as<T>();
    parallel_for(ctx, q.dim(0), [&](int64_t b) {
      cayley_block(from + b * each, n, room + b * n * n, to + b * n * n);
    });
  });
}

void cayley_backward(Context& ctx, ConstTensorView q, ConstTensorView dq, TensorView dskew) {
  const char* op = "cayley_backward";
  ctx.require_here(op, q, dq, dskew);
  check_blocks(op, "q", q);
  require_tensor(op, "dq", dq, q.shape(), q.dtype());
  require_tensor(op, "dskew", dskew, triangles_of(q), q.dtype());
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda()) return cuda::cayley_backward(ctx, q, dq, dskew);
  }
  visit_real(q.dtype(), [&]<class T>(Type<T>) {
    Arena::Scope scratch(ctx.scratch());
    const int64_t n = q.dim(1), each = dskew.dim(1), square = n * n;
    double* room = scratch.take({q.dim(0), 3, n, n}, DType::f64).as<double>();
    const T *rotation = q.as<T>(), *gradient = dq.as<T>();
    T* to = dskew.as<T>();
    parallel_for(ctx, q.dim(0), [&](int64_t b) {
      cayley_backward_block(rotation + b * square, gradient + b * square, n, room + b * 3 * square,
                            to + b * each);
    });
  });
}

void bound_rotation(Context& ctx, double radius, TensorView skew) {
  const char* op = "bound_rotation";
  ctx.require_here(op, skew);
  require(skew.rank() == 2, op, ": skew must be [blocks, n (n - 1) / 2], got ", skew.shape());
  require(radius >= 0, op, ": the radius must not be negative, got ", radius);
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda()) return cuda::bound_rotation(ctx, radius, skew);
  }
  visit_real(skew.dtype(), [&]<class T>(Type<T>) {
    const int64_t each = skew.dim(1);
    for (int64_t b = 0; b < skew.dim(0); ++b) {
      T* block = skew.as<T>() + b * each;
      double square = 0;
      for (int64_t i = 0; i < each; ++i) {
        const auto s = static_cast<double>(block[i]);
        square += s * s;
      }
      const double norm = std::sqrt(2 * square);
      if (!(norm > radius)) continue;
      const double factor = radius / norm * kInsideRadius;
      for (int64_t i = 0; i < each; ++i)
        block[i] = static_cast<T>(static_cast<double>(block[i]) * factor);
    }
  });
}

void rotate_columns(Context& ctx, ConstTensorView w, ConstTensorView q, TensorView y) {
  const char* op = "rotate_columns";
  ctx.require_here(op, w, q, y);
  check_blocks(op, "q", q);
  require(w.rank() == 2 && w.dim(1) == q.dim(0) * q.dim(1), op, ": w must be [out, ",
          q.dim(0) * q.dim(1), "], got ", w.shape());
  require_tensor(op, "q", q, q.shape(), w.dtype());
  require_tensor(op, "y", y, w.shape(), w.dtype());
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda()) return cuda::rotate_columns(ctx, w, q, y);
  }
  visit_real(w.dtype(), [&]<class T>(Type<T>) {
    const int64_t n = q.dim(1);
    const auto from = w.as<T, 2>();
    const auto to = y.as<T, 2>();
    const T* rotation = q.as<T>();
    for_row_panels(ctx, w.dim(0), [&](int64_t begin, int64_t end) {
      for (int64_t o = begin; o < end; ++o)
        for (int64_t b = 0; b < q.dim(0); ++b)
          for (int64_t i = 0; i < n; ++i)
            to(o, b * n + i) =
                static_cast<T>(ordered_dot(from.row(o) + b * n, rotation + (b * n + i) * n, n));
    });
  });
}

void rotate_columns_backward(Context& ctx, ConstTensorView w, ConstTensorView dy, TensorView dq) {
  const char* op = "rotate_columns_backward";
  ctx.require_here(op, w, dy, dq);
  check_blocks(op, "dq", dq);
  require(w.rank() == 2 && w.dim(1) == dq.dim(0) * dq.dim(1), op, ": w must be [out, ",
          dq.dim(0) * dq.dim(1), "], got ", w.shape());
  require_tensor(op, "dy", dy, w.shape(), w.dtype());
  require_tensor(op, "dq", dq, dq.shape(), w.dtype());
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda()) return cuda::rotate_columns_backward(ctx, w, dy, dq);
  }
  visit_real(w.dtype(), [&]<class T>(Type<T>) {
    const int64_t n = dq.dim(1);
    const auto rows = w.as<T, 2>();
    const auto gradient = dy.as<T, 2>();
    parallel_for(ctx, dq.dim(0) * n, [&](int64_t unit) {
      const int64_t first = unit / n * n;  // of the columns of the block
      T* to = dq.as<T>() + unit * n;
      std::fill_n(to, n, T(0));
      for (int64_t o = 0; o < w.dim(0); ++o) {
        const T g = gradient(o, unit);
        const T* row = rows.row(o) + first;
        for (int64_t j = 0; j < n; ++j) to[j] += g * row[j];
      }
    });
  });
}

}  // namespace scgraft
