// SPDX-License-Identifier: Apache-2.0
#include "kernels/batch_norm.h"

#include <cmath>

#include "kernels/require_tensor.h"
#include "kernels/rows.h"

namespace scgraft {
namespace {

void check_map(const char* op, ConstTensorView x, const BatchNormMap& map) {
  require(x.rank() == 2, op, ": x must be [rows, dim], got ", x.shape());
  const Shape features{x.dim(1)};
  const DType type = sum_type(x.dtype());
  require_tensor(op, "mean", map.mean, features, type);
  require_tensor(op, "var", map.var, features, type);
  require(map.gamma.empty() == map.beta.empty(), op, ": gamma and beta come together or not");
  require_optional(op, "gamma", map.gamma, features, type);
  require_optional(op, "beta", map.beta, features, type);
}

// Columns that a unit of work owns: one long batch keeps several threads busy.
constexpr int64_t kColumns = 64;

// Sums over the rows of kSums numbers per feature, kPanelRows rows at a time and then the panels in
// order. add(row, feature, sums) adds to sums [kSums]; done(feature, sums) takes the result.
template <class T, int kSums, class Add, class Done>
void sum_rows(Context& ctx, int64_t rows, int64_t dim, Add&& add, Done&& done) {
  parallel_for(ctx, (dim + kColumns - 1) / kColumns, [&](int64_t unit) {
    const int64_t first = unit * kColumns;
    const int64_t last = std::min(dim, first + kColumns);
    T total[kColumns][kSums] = {};
    for (int64_t begin = 0; begin < rows; begin += kPanelRows) {
      T part[kColumns][kSums] = {};
      for (int64_t t = begin; t < std::min(rows, begin + kPanelRows); ++t)
        for (int64_t f = first; f < last; ++f) add(t, f, part[f - first]);
      for (int64_t f = first; f < last; ++f)
        for (int s = 0; s < kSums; ++s) total[f - first][s] += part[f - first][s];
    }
    for (int64_t f = first; f < last; ++f) done(f, total[f - first]);
  });
}

// The map with its constants worked out: y = scale xhat + shift, xhat = (x - mean) rstd.
template <class T>
struct Features {
  std::vector<T> rstd, gamma, beta;
  const T* mean;

  Features(const BatchNormMap& map, int64_t dim)
      : rstd(static_cast<size_t>(dim)),
        gamma(rstd.size(), T(1)),
        beta(rstd.size(), T(0)),
        mean(map.mean.as<T>()) {
    const T* var = map.var.as<T>();
    for (size_t f = 0; f < rstd.size(); ++f)
      rstd[f] = T(1) / std::sqrt(var[f] + static_cast<T>(map.eps));
    if (map.gamma.empty()) return;
    std::copy_n(map.gamma.as<T>(), dim, gamma.begin());
    std::copy_n(map.beta.as<T>(), dim, beta.begin());
  }
};

template <class T>
void norm_cpu(Context& ctx, Array<const T, 2> x, const Features<T>& features, Array<T, 2> y) {
  const T* rstd = features.rstd.data();
  const T* gamma = features.gamma.data();
  const T* beta = features.beta.data();
  const T* mean = features.mean;
  for_row_panels(ctx, x.dim(0), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const T* from = x.row(t);
      T* to = y.row(t);
#pragma omp simd
      for (int64_t f = 0; f < x.dim(1); ++f)
        to[f] = gamma[f] * ((from[f] - mean[f]) * rstd[f]) + beta[f];
    }
  });
}

template <class T>
void backward_cpu(Context& ctx, Array<const T, 2> x, Array<const T, 2> dy,
                  const Features<T>& features, bool of_batch, T* dx, T* dgamma, T* dbeta) {
  const int64_t rows = x.dim(0), dim = x.dim(1);
  const T* rstd = features.rstd.data();
  const T* gamma = features.gamma.data();
  const T* mean = features.mean;
  std::vector<T> mean_dy(static_cast<size_t>(dim)), mean_dyx(static_cast<size_t>(dim));
  if (of_batch || dgamma != nullptr || dbeta != nullptr)
    sum_rows<T, 2>(
        ctx, rows, dim,
        [&](int64_t t, int64_t f, T* sums) {
          sums[0] += dy(t, f);
          sums[1] += dy(t, f) * ((x(t, f) - mean[f]) * rstd[f]);
        },
        [&](int64_t f, const T* sums) {
          if (dbeta != nullptr) dbeta[f] += sums[0];
          if (dgamma != nullptr) dgamma[f] += sums[1];
          if (!of_batch || rows == 0) return;
          mean_dy[static_cast<size_t>(f)] = sums[0] / static_cast<T>(rows);
          mean_dyx[static_cast<size_t>(f)] = sums[1] / static_cast<T>(rows);
        });
  if (dx == nullptr) return;
  const T* shift = mean_dy.data();
  const T* slope = mean_dyx.data();
  for_row_panels(ctx, rows, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const T* from = x.row(t);
      const T* gradient = dy.row(t);
      T* to = dx + t * dim;
#pragma omp simd
      for (int64_t f = 0; f < dim; ++f) {
        const T xhat = (from[f] - mean[f]) * rstd[f];
        to[f] = gamma[f] * rstd[f] * (gradient[f] - shift[f] - xhat * slope[f]);
      }
    }
  });
}

}  // namespace

void batch_moments(Context& ctx, ConstTensorView x, TensorView mean, TensorView var) {
  constexpr const char* kOp = "batch_moments";
  ctx.require_here(kOp, x, mean, var);
  check_map(kOp, x, {.mean = mean, .var = var});
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda()) return cuda::batch_moments(ctx, x, mean, var);
  }
  visit_real(x.dtype(), [&]<class T>(Type<T>) {
    const auto in = x.as<T, 2>();
    T* m = mean.as<T>();
    T* v = var.as<T>();
    const T count = static_cast<T>(std::max<int64_t>(x.dim(0), 1));
    sum_rows<T, 1>(
        ctx, x.dim(0), x.dim(1), [&](int64_t t, int64_t f, T* sum) { sum[0] += in(t, f); },
        [&](int64_t f, const T* sum) { m[f] = sum[0] / count; });
    sum_rows<T, 1>(
        ctx, x.dim(0), x.dim(1),
        [&](int64_t t, int64_t f, T* sum) { sum[0] += (in(t, f) - m[f]) * (in(t, f) - m[f]); },
        [&](int64_t f, const T* sum) { v[f] = sum[0] / count; });
  });
}

void batch_norm(Context& ctx, ConstTensorView x, const BatchNormMap& map, TensorView y) {
  constexpr const char* kOp = "batch_norm";
  ctx.require_here(kOp, x, map.mean, map.var, map.gamma, map.beta, y);
  check_map(kOp, x, map);
  require_tensor(kOp, "y", y, x.shape(), x.dtype());
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda()) return cuda::batch_norm(ctx, x, map, y);
  }
  visit_real(x.dtype(), [&]<class T>(Type<T>) {
    norm_cpu<T>(ctx, x.as<T, 2>(), Features<T>(map, x.dim(1)), y.as<T, 2>());
  });
}

void batch_norm_backward(Context& ctx, ConstTensorView x, ConstTensorView dy,
                         const BatchNormMap& map, bool of_batch, TensorView dx, TensorView dgamma,
                         TensorView dbeta) {
  constexpr const char* kOp = "batch_norm_backward";
  ctx.require_here(kOp, x, dy, map.mean, map.var, map.gamma, map.beta, dx, dgamma, dbeta);
  check_map(kOp, x, map);
  require_tensor(kOp, "dy", dy, x.shape(), x.dtype());
  require_optional(kOp, "dx", dx, x.shape(), x.dtype());
  require_optional(kOp, "dgamma", dgamma, map.mean.shape(), map.mean.dtype());
  require_optional(kOp, "dbeta", dbeta, map.mean.shape(), map.mean.dtype());
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda())
      return cuda::batch_norm_backward(ctx, x, dy, map, of_batch, dx, dgamma, dbeta);
  }
  visit_real(x.dtype(), [&]<class T>(Type<T>) {
    backward_cpu<T>(ctx, x.as<T, 2>(), dy.as<T, 2>(), Features<T>(map, x.dim(1)), of_batch,
                    data_or_null<T>(dx), data_or_null<T>(dgamma), data_or_null<T>(dbeta));
  });
}

}  // namespace scgraft
