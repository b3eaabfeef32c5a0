// SPDX-License-Identifier: Apache-2.0
#include "kernels/layer_norm.h"

#include <cmath>
#include <cstring>

#include "kernels/dropout_rows.h"
#include "kernels/ordered_sum.h"
#include "kernels/require_tensor.h"
#include "kernels/rows.h"
#include "runtime/tensor.h"

namespace scgraft {
namespace {

template <class T>
struct Forward {
  const T* x;
  const T* branch;  // or null
  const T* gamma;
  const T* beta;
  T* y;
  T* rstd;  // or null
  T* xhat;  // or null
  T eps;
  int64_t dim;
};

// The definition. y holds z until its row is finished.
template <class T>
void forward_definition(const Forward<T>& a, const RowDropout& drop, int64_t rows) {
  for (int64_t r = 0; r < rows; ++r) {
    const T* x = a.x + r * a.dim;
    T* z = a.y + r * a.dim;
    if (a.branch == nullptr)
      for (int64_t f = 0; f < a.dim; ++f) z[f] = x[f];
    else
      drop.each(
          r, a.dim, [&](int64_t f) { return a.branch[r * a.dim + f]; },
          [&](int64_t f, T dropped) { z[f] = x[f] + dropped; });
    T sum = 0;
    for (int64_t f = 0; f < a.dim; ++f) sum += z[f];
    const T mean = sum / T(a.dim);
    T squares = 0;
    for (int64_t f = 0; f < a.dim; ++f) squares += (z[f] - mean) * (z[f] - mean);
    const T rstd = 1 / std::sqrt(squares / T(a.dim) + a.eps);
    for (int64_t f = 0; f < a.dim; ++f) {
      const T xhat = (z[f] - mean) * rstd;
      if (a.xhat != nullptr) a.xhat[r * a.dim + f] = xhat;
      z[f] = a.gamma[f] * xhat + a.beta[f];
    }
    if (a.rstd != nullptr) a.rstd[r] = rstd;
  }
}

// z = x + drop(branch) of one row.
void residual_row(const Forward<float>& a, const RowDropout& drop, int64_t r, float* z) {
  const float* x = a.x + r * a.dim;
  if (a.branch == nullptr) {
    std::memmove(z, x, static_cast<size_t>(a.dim) * sizeof(float));
    return;
  }
  const float* branch = a.branch + r * a.dim;
  if (!drop.active()) {
#pragma omp simd
    for (int64_t f = 0; f < a.dim; ++f) z[f] = x[f] + branch[f];
    return;
  }
  const Keep keep = drop.keep();
  drop.pieces(r, 0, a.dim, [&](int64_t f, int64_t n, const uint16_t* lanes) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) z[f + i] = x[f + i] + keep(lanes[i], branch[f + i]);
  });
}

// The row stays in the first-level cache between the passes, so memory sees each element once.
void forward_row(const Forward<float>& a, const RowDropout& drop, int64_t r) {
  float* z = a.y + r * a.dim;
  residual_row(a, drop, r, z);
  const float dim = static_cast<float>(a.dim);
  const float mean = ordered_sum<float>(a.dim, [&](int64_t f) { return z[f]; }) / dim;
  const float squares =
      ordered_sum<float>(a.dim, [&](int64_t f) { return (z[f] - mean) * (z[f] - mean); });
  const float rstd = 1.0f / std::sqrt(squares / dim + a.eps);
  if (a.xhat == nullptr) {
#pragma omp simd
    for (int64_t f = 0; f < a.dim; ++f) z[f] = a.gamma[f] * ((z[f] - mean) * rstd) + a.beta[f];
  } else {
    float* xhat = a.xhat + r * a.dim;
#pragma omp simd
    for (int64_t f = 0; f < a.dim; ++f) {
      xhat[f] = (z[f] - mean) * rstd;
      z[f] = a.gamma[f] * xhat[f] + a.beta[f];
    }
  }
  if (a.rstd != nullptr) a.rstd[r] = rstd;
}

template <class T>
struct Backward {
  const T* dy;
  const T* y;     // or null, then xhat is not
  const T* xhat;  // or null
  const T* rstd;
  const T* gamma;
  const T* beta;
  T* dx;       // or null
  T* dbranch;  // or null
  int64_t dim;
};

// The rows of each cell; without a packing all rows count as one cell.
struct Cells {
  const Packing* packing;
  int64_t rows;
  int64_t count() const { return packing == nullptr ? 1 : packing->cells(); }
  int64_t begin(int64_t cell) const { return packing == nullptr ? 0 : packing->begin(cell); }
  int64_t end(int64_t cell) const { return packing == nullptr ? rows : packing->end(cell); }
};

template <class T>
T xhat_of(const Backward<T>& a, int64_t r, int64_t f) {
  const int64_t i = r * a.dim + f;
  return a.xhat != nullptr ? a.xhat[i] : (a.y[i] - a.beta[f]) / a.gamma[f];
}

template <class T>
void parameters_definition(const Backward<T>& a, const Cells& cells, T* dgamma, T* dbeta) {
  for (int64_t cell = 0; cell < cells.count(); ++cell)
    for (int64_t f = 0; f < a.dim; ++f) {
      double gamma_sum = 0;
      double beta_sum = 0;
      for (int64_t r = cells.begin(cell); r < cells.end(cell); ++r) {
        gamma_sum += double{a.dy[r * a.dim + f]} * double{xhat_of(a, r, f)};
        beta_sum += double{a.dy[r * a.dim + f]};
      }
      if (dgamma != nullptr) dgamma[f] += T(gamma_sum);
      if (dbeta != nullptr) dbeta[f] += T(beta_sum);
    }
}

template <class T>
void inputs_definition(const Backward<T>& a, const RowDropout& drop, int64_t rows) {
  for (int64_t r = 0; r < rows; ++r) {
    const T* dy = a.dy + r * a.dim;
    T mean_g = 0;
    T mean_gx = 0;
    for (int64_t f = 0; f < a.dim; ++f) {
      mean_g += a.gamma[f] * dy[f];
      mean_gx += a.gamma[f] * dy[f] * xhat_of(a, r, f);
    }
    mean_g /= T(a.dim);
    mean_gx /= T(a.dim);
    const auto dz = [&](int64_t f) {
      return a.rstd[r] * (a.gamma[f] * dy[f] - mean_g - xhat_of(a, r, f) * mean_gx);
    };
    // dx may be dy, so each element is read before it is written.
    drop.each(r, a.dim, dz, [&](int64_t f, T dropped) {
      const T kept = dz(f);
      if (a.dx != nullptr) a.dx[r * a.dim + f] = kept;
      if (a.dbranch != nullptr) a.dbranch[r * a.dim + f] = dropped;
    });
  }
}

// xhat of one row, taken from the output or as it was saved.
struct FromY {
  const float* y;
  const float* beta;
  const float* inverse_gamma;
  float operator()(int64_t f) const { return (y[f] - beta[f]) * inverse_gamma[f]; }
};
struct Saved {
  const float* xhat;
  float operator()(int64_t f) const { return xhat[f]; }
};

// Input gradients of one row. gamma_sum and beta_sum, when not null, get the row's share of the
// parameter gradients added.
template <class Xhat>
void backward_row(const Backward<float>& a, const RowDropout& drop, int64_t r, Xhat xhat,
                  float* gamma_sum, float* beta_sum) {
  const float* dy = a.dy + r * a.dim;
  const float* gamma = a.gamma;
  if (gamma_sum != nullptr) {
#pragma omp simd
    for (int64_t f = 0; f < a.dim; ++f) {
      gamma_sum[f] += dy[f] * xhat(f);
      beta_sum[f] += dy[f];
    }
  }
  float* dz = a.dx != nullptr ? a.dx + r * a.dim : a.dbranch;
  if (dz == nullptr) return;
  if (a.dx == nullptr) dz += r * a.dim;

  const float dim = static_cast<float>(a.dim);
  const float rstd = a.rstd[r];
  constexpr int kLanes = kSumLanes<float>;
  float g_lanes[kLanes] = {};
  float gx_lanes[kLanes] = {};
  for (int64_t f = 0; f < a.dim; f += kLanes) {
    const int lanes = static_cast<int>(std::min<int64_t>(kLanes, a.dim - f));
#pragma omp simd
    for (int l = 0; l < lanes; ++l) {
      const float g = gamma[f + l] * dy[f + l];
      g_lanes[l] += g;
      gx_lanes[l] += g * xhat(f + l);
    }
  }
  const float mean_g = sum_lanes(g_lanes) / dim;
  const float mean_gx = sum_lanes(gx_lanes) / dim;
#pragma omp simd
  for (int64_t f = 0; f < a.dim; ++f)
    dz[f] = rstd * (gamma[f] * dy[f] - mean_g - xhat(f) * mean_gx);

  if (a.dbranch == nullptr) return;
  float* dbranch = a.dbranch + r * a.dim;
  if (!drop.active()) {
    if (dbranch != dz) std::memcpy(dbranch, dz, static_cast<size_t>(a.dim) * sizeof(float));
    return;
  }
  const Keep keep = drop.keep();
  drop.pieces(r, 0, a.dim, [&](int64_t f, int64_t n, const uint16_t* lanes) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) dbranch[f + i] = keep(lanes[i], dz[f + i]);
  });
}

// Parameter gradients need sums over rows: panel by panel into scratch memory, the panels of a
// cell in order, then the cells in order. So the bits do not depend on the threads, nor on which
// cells share a call.
template <class Rows>
void backward_panels(Context& ctx, int64_t dim, const Cells& cells, float* dgamma, float* dbeta,
                     Rows&& rows) {
  Arena::Scope scratch(ctx.scratch());
  int64_t* first_panel = scratch.take({cells.count() + 1}, DType::i64).as<int64_t>();
  first_panel[0] = 0;
  for (int64_t cell = 0; cell < cells.count(); ++cell)
    first_panel[cell + 1] =
        first_panel[cell] + (cells.end(cell) - cells.begin(cell) + kPanelRows - 1) / kPanelRows;
  const int64_t panels = first_panel[cells.count()];
  float* sums = scratch.take({panels, 2, dim}, DType::f32).as<float>();

  parallel_for(ctx, panels, [&](int64_t panel) {
    const int64_t* after = std::upper_bound(first_panel, first_panel + cells.count() + 1, panel);
    const int64_t cell = after - first_panel - 1;
    const int64_t begin = cells.begin(cell) + (panel - first_panel[cell]) * kPanelRows;
    float* mine = sums + panel * 2 * dim;
    std::memset(mine, 0, static_cast<size_t>(2 * dim) * sizeof(float));
    rows(begin, std::min(begin + kPanelRows, cells.end(cell)), mine, mine + dim);
  });

  constexpr int64_t kFeatures = 64;
  parallel_for(ctx, (dim + kFeatures - 1) / kFeatures, [&](int64_t block) {
    const int64_t begin = block * kFeatures;
    const int64_t n = std::min(kFeatures, dim - begin);
    const auto add_cell = [&](int64_t cell, const float* panel_sums, float* total) {
      float sum[kFeatures] = {};
      for (int64_t panel = first_panel[cell]; panel < first_panel[cell + 1]; ++panel)
        for (int64_t f = 0; f < n; ++f) sum[f] += panel_sums[panel * 2 * dim + f];
      for (int64_t f = 0; f < n; ++f) total[f] += sum[f];
    };
    for (int64_t cell = 0; cell < cells.count(); ++cell) {
      if (dgamma != nullptr) add_cell(cell, sums + begin, dgamma + begin);
      if (dbeta != nullptr) add_cell(cell, sums + dim + begin, dbeta + begin);
    }
  });
}

void backward_fast(Context& ctx, const Backward<float>& a, const RowDropout& drop,
                   const Cells& cells, float* dgamma, float* dbeta) {
  Arena::Scope scratch(ctx.scratch());
  float* inverse_gamma = nullptr;
  if (a.xhat == nullptr) {
    inverse_gamma = scratch.take({a.dim}, DType::f32).as<float>();
    for (int64_t f = 0; f < a.dim; ++f) inverse_gamma[f] = 1.0f / a.gamma[f];
  }
  const auto rows = [&](int64_t begin, int64_t end, float* gamma_sum, float* beta_sum) {
    for (int64_t r = begin; r < end; ++r) {
      if (a.xhat != nullptr)
        backward_row(a, drop, r, Saved{a.xhat + r * a.dim}, gamma_sum, beta_sum);
      else
        backward_row(a, drop, r, FromY{a.y + r * a.dim, a.beta, inverse_gamma}, gamma_sum,
                     beta_sum);
    }
  };
  if (dgamma != nullptr || dbeta != nullptr)
    return backward_panels(ctx, a.dim, cells, dgamma, dbeta, rows);
  for_row_panels(ctx, cells.rows,
                 [&](int64_t begin, int64_t end) { rows(begin, end, nullptr, nullptr); });
}

}  // namespace

void layer_norm(Context& ctx, ConstTensorView x, ConstTensorView branch, Dropout dropout,
                const Packing* packing, ConstTensorView gamma, ConstTensorView beta, double eps,
                TensorView y, TensorView rstd, TensorView xhat) {
  constexpr const char* kOp = "layer_norm";
  ctx.require_here(kOp, x, branch, gamma, beta, y, rstd, xhat);
  require(x.rank() == 2 && x.dim(1) > 0, kOp, ": x must be [rows, dim] with dim > 0, got ",
          x.shape());
  const int64_t rows = x.dim(0);
  const int64_t dim = x.dim(1);
  require_optional(kOp, "branch", branch, x.shape(), x.dtype());
  require_tensor(kOp, "gamma", gamma, {dim}, sum_type(x.dtype()));
  require_tensor(kOp, "beta", beta, {dim}, sum_type(x.dtype()));
  require_tensor(kOp, "y", y, x.shape(), x.dtype());
  require_optional(kOp, "rstd", rstd, {rows}, sum_type(x.dtype()));
  require_optional(kOp, "xhat", xhat, x.shape(), x.dtype());
  require(eps >= 0, kOp, ": eps must not be negative, got ", eps);
  const RowDropout drop(kOp, ctx, branch.empty() ? Dropout{} : dropout, packing, rows);
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda())
      return cuda::layer_norm(ctx, x, branch, dropout, packing, gamma, beta, eps, y, rstd, xhat);
  }

  visit_real(x.dtype(), [&]<class T>(Type<T>) {
    const Forward<T> a{
        x.as<T>(), data_or_null<T>(branch), gamma.as<T>(),         beta.as<T>(),
        y.as<T>(), data_or_null<T>(rstd),   data_or_null<T>(xhat), static_cast<T>(eps),
        dim};
    if constexpr (std::is_same_v<T, float>) {
      if (!ctx.reference()) {
        for_row_panels(ctx, rows, [&](int64_t begin, int64_t end) {
          for (int64_t r = begin; r < end; ++r) forward_row(a, drop, r);
        });
        return;
      }
    }
    forward_definition(a, drop, rows);
  });
}

void layer_norm_backward(Context& ctx, ConstTensorView dy, const LayerNormSaved& saved,
                         ConstTensorView gamma, ConstTensorView beta, Dropout dropout,
                         const Packing* packing, TensorView dx, TensorView dbranch,
                         TensorView dgamma, TensorView dbeta) {
  constexpr const char* kOp = "layer_norm_backward";
  ctx.require_here(kOp, dy, saved.y, saved.xhat, saved.rstd, gamma, beta, dx, dbranch, dgamma,
                   dbeta);
  require(dy.rank() == 2 && dy.dim(1) > 0, kOp, ": dy must be [rows, dim] with dim > 0, got ",
          dy.shape());
  const int64_t rows = dy.dim(0);
  const int64_t dim = dy.dim(1);
  if (rows == 0) return;
  require(!saved.xhat.empty() || !saved.y.empty(), kOp,
          ": saved must hold y or xhat of the forward pass, got neither");
  require_optional(kOp, "saved.y", saved.y, dy.shape(), dy.dtype());
  require_optional(kOp, "saved.xhat", saved.xhat, dy.shape(), dy.dtype());
  require_tensor(kOp, "saved.rstd", saved.rstd, {rows}, sum_type(dy.dtype()));
  require_tensor(kOp, "gamma", gamma, {dim}, sum_type(dy.dtype()));
  require_tensor(kOp, "beta", beta, {dim}, sum_type(dy.dtype()));
  require_optional(kOp, "dx", dx, dy.shape(), dy.dtype());
  require_optional(kOp, "dbranch", dbranch, dy.shape(), dy.dtype());
  require_optional(kOp, "dgamma", dgamma, {dim}, sum_type(dy.dtype()));
  require_optional(kOp, "dbeta", dbeta, {dim}, sum_type(dy.dtype()));
  require(packing == nullptr || (!packing->offsets.empty() && packing->tokens() == rows), kOp,
          ": the packing must describe ", rows, " rows; pass the packing of this tensor");
  const RowDropout drop(kOp, ctx, dbranch.empty() ? Dropout{} : dropout, packing, rows);
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda())
      return cuda::layer_norm_backward(ctx, dy, saved, gamma, beta, dropout, packing, dx, dbranch,
                                       dgamma, dbeta);
  }

  const Cells cells{packing, rows};
  visit_real(dy.dtype(), [&]<class T>(Type<T>) {
    const Backward<T> a{dy.as<T>(),
                        data_or_null<T>(saved.y),
                        data_or_null<T>(saved.xhat),
                        saved.rstd.as<T>(),
                        gamma.as<T>(),
                        beta.as<T>(),
                        data_or_null<T>(dx),
                        data_or_null<T>(dbranch),
                        dim};
    if constexpr (std::is_same_v<T, float>) {
      if (!ctx.reference())
        return backward_fast(ctx, a, drop, cells, data_or_null<T>(dgamma), data_or_null<T>(dbeta));
    }
    if (!dgamma.empty() || !dbeta.empty())
      parameters_definition(a, cells, data_or_null<T>(dgamma), data_or_null<T>(dbeta));
    inputs_definition(a, drop, rows);
  });
}

bool layer_norm_is_invertible(ConstTensorView gamma, ConstTensorView beta) {
  constexpr const char* kOp = "layer_norm_is_invertible";
  require(gamma.rank() == 1, kOp, ": gamma must be [dim], got ", gamma.shape());
  require_tensor(kOp, "beta", beta, gamma.shape(), gamma.dtype());
  if (gamma.device().is_cuda() || beta.device().is_cuda()) {
    Tensor host_gamma(gamma.shape(), gamma.dtype()), host_beta(beta.shape(), beta.dtype());
    copy(gamma, host_gamma.view());
    copy(beta, host_beta.view());
    return layer_norm_is_invertible(host_gamma.view(), host_beta.view());
  }
  return visit_real(gamma.dtype(), [&]<class T>(Type<T>) {
    const T* g = gamma.as<T>();
    const T* b = beta.as<T>();
    // Written so that NaN gives false.
    for (int64_t f = 0; f < gamma.numel(); ++f)
      if (g[f] == 0 || !(std::abs(b[f] / g[f]) < 8)) return false;
    return true;
  });
}

}  // namespace scgraft
