// SPDX-License-Identifier: Apache-2.0
#include "kernels/reflections.h"

#include <algorithm>
#include <cmath>

#include "kernels/ordered_sum.h"
#include "kernels/require_tensor.h"
#include "runtime/array.h"

namespace scgraft {
namespace {

constexpr double kFloor = 1e-12;

// The chain in f64, in scratch memory of the caller. Rows 2 k and 2 k + 1 belong to pair k.
struct Chain {
  int64_t in = 0, rank = 0;
  double* length = nullptr;  // [rank] of the columns
  Array<double, 2> v;        // [rank, in]: n_1 and n_2 - n_1
  Array<double, 2> a, p;     // [rank, in]
};

Chain chain_in(Arena::Scope& scratch, int64_t in, int64_t rank) {
  const auto matrix = [&] { return scratch.take({rank, in}, DType::f64).as<double, 2>(); };
  return {in, rank, scratch.take({rank}, DType::f64).as<double>(), matrix(), matrix(), matrix()};
}

template <class T>
void form(Array<const T, 2> u, const Chain& c) {
  for (int64_t r = 0; r < c.rank; ++r) {
    double* n = c.v.row(r);
    for (int64_t i = 0; i < c.in; ++i) n[i] = static_cast<double>(u(i, r));
    // Not std::max: the comparison must let a NaN through.
    c.length[r] = std::sqrt(ordered_dot(n, n, c.in));
    if (c.length[r] < kFloor) c.length[r] = kFloor;
    for (int64_t i = 0; i < c.in; ++i) n[i] /= c.length[r];
  }
  for (int64_t k = 0; k < c.rank; k += 2) {
    const double* n = c.v.row(k);
    double *v = c.v.row(k + 1), *a1 = c.a.row(k), *a2 = c.a.row(k + 1);
    for (int64_t i = 0; i < c.in; ++i) v[i] -= n[i];
    const double s = ordered_dot(v, v, c.in);
    for (int64_t i = 0; i < c.in; ++i) {
      a1[i] = 2 * s * n[i] + 2 * (s - 1) * v[i];
      a2[i] = 2 * (n[i] + v[i]);
    }
  }
  for (int64_t k = 0; k < c.rank; ++k) {
    double* p = c.p.row(k);
    std::copy_n(c.v.row(k), c.in, p);
    for (int64_t j = 0; j < k / 2 * 2; ++j) {
      const double along = ordered_dot(c.a.row(j), c.v.row(k), c.in);
      const double* from = c.p.row(j);
      for (int64_t i = 0; i < c.in; ++i) p[i] -= along * from[i];
    }
  }
}

// From the gradients by a and p, which are used up, to that by u, which is added to.
//   dv  [rank, in]  room for the gradient by V
template <class T>
void form_backward(const Chain& c, Array<double, 2> da, Array<double, 2> dp, Array<double, 2> dv,
                   Array<T, 2> du) {
  for (int64_t k = c.rank - 2; k >= 0; k -= 2)
    for (int64_t w = k; w < k + 2; ++w) {
      // Only later pairs have used p of this one, so its gradient is complete.
      const double *v = c.v.row(w), *dpw = dp.row(w);
      double* dvw = dv.row(w);
      std::copy_n(dpw, c.in, dvw);
      for (int64_t j = 0; j < k; ++j) {
        const double *a = c.a.row(j), *p = c.p.row(j);
        double *daj = da.row(j), *dpj = dp.row(j);
        const double along = ordered_dot(a, v, c.in);
        const double dalong = -ordered_dot(p, dpw, c.in);
        for (int64_t i = 0; i < c.in; ++i) {
          dpj[i] -= along * dpw[i];
          daj[i] += dalong * v[i];
          dvw[i] += dalong * a[i];
        }
      }
    }
  for (int64_t k = 0; k < c.rank; k += 2) {
    const double *n = c.v.row(k), *v = c.v.row(k + 1), *da1 = da.row(k), *da2 = da.row(k + 1);
    double *dn1 = dv.row(k), *dn2 = dv.row(k + 1);
    const double s = ordered_dot(v, v, c.in);
    const double ds = 2 * (ordered_dot(n, da1, c.in) + ordered_dot(v, da1, c.in));
    for (int64_t i = 0; i < c.in; ++i) {
      dn2[i] += 2 * (s - 1) * da1[i] + 2 * da2[i] + 2 * ds * v[i];
      dn1[i] += 2 * s * da1[i] + 2 * da2[i] - dn2[i];
    }
    // Scaling to unit length takes away what lies along the column, but not at the floor.
    const auto along = [&](int64_t r, const double* dn) {
      return c.length[r] > kFloor
                 ? ordered_sum<double>(
                       c.in, [&](int64_t i) { return (n[i] + (r > k ? v[i] : 0.0)) * dn[i]; })
                 : 0.0;
    };
    const double along1 = along(k, dn1), along2 = along(k + 1, dn2);
    for (int64_t i = 0; i < c.in; ++i) {
      du(i, k) += static_cast<T>((dn1[i] - n[i] * along1) / c.length[k]);
      du(i, k + 1) += static_cast<T>((dn2[i] - (n[i] + v[i]) * along2) / c.length[k + 1]);
    }
  }
}

template <class From, class To>
void convert(Array<From, 2> from, Array<To, 2> to) {
  for (int64_t r = 0; r < from.dim(0); ++r)
    for (int64_t i = 0; i < from.dim(1); ++i) to(r, i) = static_cast<To>(from(r, i));
}

void check_columns(const char* op, ConstTensorView u) {
  require(u.rank() == 2 && u.dim(1) % 2 == 0, op, ": u must be [in, rank] with an even rank, got ",
          u.shape());
}

}  // namespace

void reflections(Context& ctx, ConstTensorView u, TensorView a, TensorView p) {
  const char* op = "reflections";
  ctx.require_here(op, u, a, p);
  check_columns(op, u);
  const Shape rows{u.dim(1), u.dim(0)};
  require_tensor(op, "a", a, rows, u.dtype());
  require_tensor(op, "p", p, rows, u.dtype());
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda()) return cuda::reflections(ctx, u, a, p);
  }
  visit_real(u.dtype(), [&]<class T>(Type<T>) {
    Arena::Scope scratch(ctx.scratch());
    const Chain chain = chain_in(scratch, u.dim(0), u.dim(1));
    form<T>(u.as<T, 2>(), chain);
    convert(chain.a, a.as<T, 2>());
    convert(chain.p, p.as<T, 2>());
  });
}

void reflections_backward(Context& ctx, ConstTensorView u, ConstTensorView da, ConstTensorView dp,
                          TensorView du) {
  const char* op = "reflections_backward";
  ctx.require_here(op, u, da, dp, du);
  check_columns(op, u);
  const Shape rows{u.dim(1), u.dim(0)};
  require_tensor(op, "da", da, rows, u.dtype());
  require_tensor(op, "dp", dp, rows, u.dtype());
  require_tensor(op, "du", du, u.shape(), u.dtype());
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda()) return cuda::reflections_backward(ctx, u, da, dp, du);
  }
  visit_real(u.dtype(), [&]<class T>(Type<T>) {
    Arena::Scope scratch(ctx.scratch());
    const Chain chain = chain_in(scratch, u.dim(0), u.dim(1));
    const auto matrix = [&] { return scratch.take(rows, DType::f64).as<double, 2>(); };
    const Array<double, 2> a_gradient = matrix(), p_gradient = matrix(), v_gradient = matrix();
    form<T>(u.as<T, 2>(), chain);
    convert(da.as<T, 2>(), a_gradient);
    convert(dp.as<T, 2>(), p_gradient);
    form_backward<T>(chain, a_gradient, p_gradient, v_gradient, du.as<T, 2>());
  });
}

}  // namespace scgraft
