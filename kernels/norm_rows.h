// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "kernels/dropout_rows.h"
#include "kernels/ordered_sum.h"
#include "kernels/require_tensor.h"
#include "kernels/rows.h"

// What layer_norm.cc and rms_norm.cc share: the checks, the definition and the fast path on the
// CPU. kernels/norm_rows.cuh is the same for kernels.
namespace scgraft {

// Layer norm subtracts the mean of a row and adds beta; RMS norm does neither.
enum class Norm { layer, rms };

template <Norm kNorm, class T>
T plus_beta(T scaled, [[maybe_unused]] const T* beta, [[maybe_unused]] int64_t f) {
  if constexpr (kNorm == Norm::layer) return scaled + beta[f];
  return scaled;
}

template <class T>
struct NormForward {
  const T* x;
  const T* branch;  // or null
  const T* gamma;
  const T* beta;  // null with Norm::rms
  T* y;
  T* rstd;  // or null
  T* xhat;  // or null
  T eps;
  int64_t dim;
};

// The definition. y holds z until its row is finished.
template <Norm kNorm, class T>
void norm_definition(const NormForward<T>& a, const RowDropout& drop, int64_t rows) {
  for (int64_t r = 0; r < rows; ++r) {
    const T* x = a.x + r * a.dim;
    T* z = a.y + r * a.dim;
    if (a.branch == nullptr)
      for (int64_t f = 0; f < a.dim; ++f) z[f] = x[f];
    else
      drop.each(
          r, a.dim, [&](int64_t f) { return a.branch[r * a.dim + f]; },
          [&](int64_t f, T dropped) { z[f] = x[f] + dropped; });
    T mean = 0;
    if constexpr (kNorm == Norm::layer) {
      for (int64_t f = 0; f < a.dim; ++f) mean += z[f];
      mean /= T(a.dim);
    }
    T squares = 0;
    for (int64_t f = 0; f < a.dim; ++f) squares += (z[f] - mean) * (z[f] - mean);
    const T rstd = 1 / std::sqrt(squares / T(a.dim) + a.eps);
    for (int64_t f = 0; f < a.dim; ++f) {
      const T xhat = (z[f] - mean) * rstd;
      if (a.xhat != nullptr) a.xhat[r * a.dim + f] = xhat;
      z[f] = plus_beta<kNorm>(a.gamma[f] * xhat, a.beta, f);
    }
    if (a.rstd != nullptr) a.rstd[r] = rstd;
  }
}

// z = x + drop(branch) of one row.
inline void residual_row(const NormForward<float>& a, const RowDropout& drop, int64_t r, float* z) {
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
template <Norm kNorm>
void norm_row(const NormForward<float>& a, const RowDropout& drop, int64_t r) {
  float* z = a.y + r * a.dim;
  residual_row(a, drop, r, z);
  const float dim = static_cast<float>(a.dim);
  float mean = 0;
  if constexpr (kNorm == Norm::layer)
    mean = ordered_sum<float>(a.dim, [&](int64_t f) { return z[f]; }) / dim;
  const float squares =
      ordered_sum<float>(a.dim, [&](int64_t f) { return (z[f] - mean) * (z[f] - mean); });
  const float rstd = 1.0f / std::sqrt(squares / dim + a.eps);
  if (a.xhat == nullptr) {
#pragma omp simd
    for (int64_t f = 0; f < a.dim; ++f)
      z[f] = plus_beta<kNorm>(a.gamma[f] * ((z[f] - mean) * rstd), a.beta, f);
  } else {
    float* xhat = a.xhat + r * a.dim;
#pragma omp simd
    for (int64_t f = 0; f < a.dim; ++f) {
      xhat[f] = (z[f] - mean) * rstd;
      z[f] = plus_beta<kNorm>(a.gamma[f] * xhat[f], a.beta, f);
    }
  }
  if (a.rstd != nullptr) a.rstd[r] = rstd;
}

template <class T>
struct NormBackward {
  const T* dy;
  const T* y;     // or null, then xhat is not
  const T* xhat;  // or null
  const T* rstd;
  const T* gamma;
  const T* beta;  // null with Norm::rms
  T* dx;          // or null
  T* dbranch;     // or null
  int64_t dim;
};

// The rows of each cell; without a packing all rows count as one cell.
struct NormCells {
  const Packing* packing;
  int64_t rows;
  int64_t count() const { return packing == nullptr ? 1 : packing->cells(); }
  int64_t begin(int64_t cell) const { return packing == nullptr ? 0 : packing->begin(cell); }
  int64_t end(int64_t cell) const { return packing == nullptr ? rows : packing->end(cell); }
};

template <Norm kNorm, class T>
T xhat_of(const NormBackward<T>& a, int64_t r, int64_t f) {
  const int64_t i = r * a.dim + f;
  if (a.xhat != nullptr) return a.xhat[i];
  if constexpr (kNorm == Norm::layer) return (a.y[i] - a.beta[f]) / a.gamma[f];
  return a.y[i] / a.gamma[f];
}

template <Norm kNorm, class T>
void norm_parameters_definition(const NormBackward<T>& a, const NormCells& cells, T* dgamma,
                                T* dbeta) {
  for (int64_t cell = 0; cell < cells.count(); ++cell)
    for (int64_t f = 0; f < a.dim; ++f) {
      double gamma_sum = 0;
      double beta_sum = 0;
      for (int64_t r = cells.begin(cell); r < cells.end(cell); ++r) {
        gamma_sum += double{a.dy[r * a.dim + f]} * double{xhat_of<kNorm>(a, r, f)};
        beta_sum += double{a.dy[r * a.dim + f]};
      }
      if (dgamma != nullptr) dgamma[f] += T(gamma_sum);
      if (dbeta != nullptr) dbeta[f] += T(beta_sum);
    }
}

template <Norm kNorm, class T>
void norm_inputs_definition(const NormBackward<T>& a, const RowDropout& drop, int64_t rows) {
  for (int64_t r = 0; r < rows; ++r) {
    const T* dy = a.dy + r * a.dim;
    T mean_g = 0;
    T mean_gx = 0;
    for (int64_t f = 0; f < a.dim; ++f) {
      if constexpr (kNorm == Norm::layer) mean_g += a.gamma[f] * dy[f];
      mean_gx += a.gamma[f] * dy[f] * xhat_of<kNorm>(a, r, f);
    }
    mean_g /= T(a.dim);
    mean_gx /= T(a.dim);
    const auto dz = [&](int64_t f) {
      return a.rstd[r] * (a.gamma[f] * dy[f] - mean_g - xhat_of<kNorm>(a, r, f) * mean_gx);
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
template <Norm kNorm>
struct XhatFromY {
  const float* y;
  const float* beta;
  const float* inverse_gamma;
  float operator()(int64_t f) const {
    if constexpr (kNorm == Norm::rms) return y[f] * inverse_gamma[f];
    return (y[f] - beta[f]) * inverse_gamma[f];
  }
};
struct SavedXhat {
  const float* xhat;
  float operator()(int64_t f) const { return xhat[f]; }
};

// Input gradients of one row. gamma_sum and beta_sum, when not null, get the row's share of the
// parameter gradients added.
template <Norm kNorm, class Xhat>
void norm_backward_row(const NormBackward<float>& a, const RowDropout& drop, int64_t r, Xhat xhat,
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
      if constexpr (kNorm == Norm::layer) g_lanes[l] += g;
      gx_lanes[l] += g * xhat(f + l);
    }
  }
  const float mean_g = kNorm == Norm::layer ? sum_lanes(g_lanes) / dim : 0;
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
void norm_backward_panels(Context& ctx, int64_t dim, const NormCells& cells, float* dgamma,
                          float* dbeta, Rows&& rows) {
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

template <Norm kNorm>
void norm_backward_fast(Context& ctx, const NormBackward<float>& a, const RowDropout& drop,
                        const NormCells& cells, float* dgamma, float* dbeta) {
  Arena::Scope scratch(ctx.scratch());
  float* inverse_gamma = nullptr;
  if (a.xhat == nullptr) {
    inverse_gamma = scratch.take({a.dim}, DType::f32).as<float>();
    for (int64_t f = 0; f < a.dim; ++f) inverse_gamma[f] = 1.0f / a.gamma[f];
  }
  const auto rows = [&](int64_t begin, int64_t end, float* gamma_sum, float* beta_sum) {
    for (int64_t r = begin; r < end; ++r) {
      if (a.xhat != nullptr)
        norm_backward_row<kNorm>(a, drop, r, SavedXhat{a.xhat + r * a.dim}, gamma_sum, beta_sum);
      else
        norm_backward_row<kNorm>(a, drop, r,
                                 XhatFromY<kNorm>{a.y + r * a.dim, a.beta, inverse_gamma},
                                 gamma_sum, beta_sum);
    }
  };
  if (dgamma != nullptr || dbeta != nullptr)
    return norm_backward_panels(ctx, a.dim, cells, dgamma, dbeta, rows);
  for_row_panels(ctx, cells.rows,
                 [&](int64_t begin, int64_t end) { rows(begin, end, nullptr, nullptr); });
}

// Checks of a forward pass; what drops the branch. beta: empty with Norm::rms.
template <Norm kNorm>
RowDropout check_norm(const char* op, Context& ctx, ConstTensorView x, ConstTensorView branch,
                      Dropout dropout, const Packing* packing, ConstTensorView gamma,
                      ConstTensorView beta, double eps, TensorView y, TensorView rstd,
                      TensorView xhat) {
  ctx.require_here(op, x, branch, gamma, beta, y, rstd, xhat);
  require(x.rank() == 2 && x.dim(1) > 0, op, ": x must be [rows, dim] with dim > 0, got ",
          x.shape());
  const int64_t rows = x.dim(0);
  const int64_t dim = x.dim(1);
  require_optional(op, "branch", branch, x.shape(), x.dtype());
  require_tensor(op, "gamma", gamma, {dim}, sum_type(x.dtype()));
  if (kNorm == Norm::layer) require_tensor(op, "beta", beta, {dim}, sum_type(x.dtype()));
  require_tensor(op, "y", y, x.shape(), x.dtype());
  require_optional(op, "rstd", rstd, {rows}, sum_type(x.dtype()));
  require_optional(op, "xhat", xhat, x.shape(), x.dtype());
  require(eps >= 0, op, ": eps must not be negative, got ", eps);
  return RowDropout(op, ctx, branch.empty() ? Dropout{} : dropout, packing, rows);
}

template <Norm kNorm>
void norm_forward(Context& ctx, ConstTensorView x, ConstTensorView branch, const RowDropout& drop,
                  ConstTensorView gamma, ConstTensorView beta, double eps, TensorView y,
                  TensorView rstd, TensorView xhat) {
  visit_real(x.dtype(), [&]<class T>(Type<T>) {
    const NormForward<T> a{
        x.as<T>(), data_or_null<T>(branch), gamma.as<T>(),         data_or_null<T>(beta),
        y.as<T>(), data_or_null<T>(rstd),   data_or_null<T>(xhat), static_cast<T>(eps),
        x.dim(1)};
    if constexpr (std::is_same_v<T, float>) {
      if (!ctx.reference()) {
        for_row_panels(ctx, x.dim(0), [&](int64_t begin, int64_t end) {
          for (int64_t r = begin; r < end; ++r) norm_row<kNorm>(a, drop, r);
        });
        return;
      }
    }
    norm_definition<kNorm>(a, drop, x.dim(0));
  });
}

// Checks of a backward pass over dy [rows, dim]. Saved: LayerNormSaved and the like. beta and
// dbeta: empty with Norm::rms.
template <Norm kNorm, class Saved>
RowDropout check_norm_backward(const char* op, Context& ctx, ConstTensorView dy, const Saved& saved,
                               ConstTensorView gamma, ConstTensorView beta, Dropout dropout,
                               const Packing* packing, TensorView dx, TensorView dbranch,
                               TensorView dgamma, TensorView dbeta) {
  ctx.require_here(op, dy, saved.y, saved.xhat, saved.rstd, gamma, beta, dx, dbranch, dgamma,
                   dbeta);
  require(dy.rank() == 2 && dy.dim(1) > 0, op, ": dy must be [rows, dim] with dim > 0, got ",
          dy.shape());
  const int64_t rows = dy.dim(0);
  const int64_t dim = dy.dim(1);
  const DType sums = sum_type(dy.dtype());
  require(rows == 0 || !saved.xhat.empty() || !saved.y.empty(), op,
          ": saved must hold y or xhat of the forward pass, got neither");
  require_optional(op, "saved.y", saved.y, dy.shape(), dy.dtype());
  require_optional(op, "saved.xhat", saved.xhat, dy.shape(), dy.dtype());
  require_tensor(op, "saved.rstd", saved.rstd, {rows}, sums);
  require_tensor(op, "gamma", gamma, {dim}, sums);
  if (kNorm == Norm::layer) require_tensor(op, "beta", beta, {dim}, sums);
  require_optional(op, "dx", dx, dy.shape(), dy.dtype());
  require_optional(op, "dbranch", dbranch, dy.shape(), dy.dtype());
  require_optional(op, "dgamma", dgamma, {dim}, sums);
  require_optional(op, "dbeta", dbeta, {dim}, sums);
  require(packing == nullptr || (!packing->offsets.empty() && packing->tokens() == rows), op,
          ": the packing must describe ", rows, " rows; pass the packing of this tensor");
  return RowDropout(op, ctx, dbranch.empty() ? Dropout{} : dropout, packing, rows);
}

template <Norm kNorm, class Saved>
void norm_backward(Context& ctx, ConstTensorView dy, const Saved& saved, ConstTensorView gamma,
                   ConstTensorView beta, const RowDropout& drop, const Packing* packing,
                   TensorView dx, TensorView dbranch, TensorView dgamma, TensorView dbeta) {
  const NormCells cells{packing, dy.dim(0)};
  visit_real(dy.dtype(), [&]<class T>(Type<T>) {
    const NormBackward<T> a{dy.as<T>(),
                            data_or_null<T>(saved.y),
                            data_or_null<T>(saved.xhat),
                            saved.rstd.template as<T>(),
                            gamma.as<T>(),
                            data_or_null<T>(beta),
                            data_or_null<T>(dx),
                            data_or_null<T>(dbranch),
                            dy.dim(1)};
    if constexpr (std::is_same_v<T, float>) {
      if (!ctx.reference())
        return norm_backward_fast<kNorm>(ctx, a, drop, cells, data_or_null<T>(dgamma),
                                         data_or_null<T>(dbeta));
    }
    if (!dgamma.empty() || !dbeta.empty())
      norm_parameters_definition<kNorm>(a, cells, data_or_null<T>(dgamma), data_or_null<T>(dbeta));
    norm_inputs_definition<kNorm>(a, drop, dy.dim(0));
  });
}

}  // namespace scgraft
