// SPDX-License-Identifier: Apache-2.0
#include "kernels/softmax.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "kernels/require_tensor.h"
#include "kernels/rows.h"
#include "kernels/softmax_simd.h"
#include "runtime/cpu.h"

namespace scgraft {
namespace {

template <class T>
void softmax_row(const T* x, T* y, int64_t dim) {
  const T shift = *std::max_element(x, x + dim);
  T sum = 0;
  for (int64_t j = 0; j < dim; ++j) {
    y[j] = std::exp(x[j] - shift);
    sum += y[j];
  }
  for (int64_t j = 0; j < dim; ++j) y[j] /= sum;
}

template <class T>
void softmax_cpu(Context& ctx, Array<const T, 2> x, Array<T, 2> y) {
  const int64_t dim = x.dim(1);
  if (dim == 0) return;
  for_row_panels(ctx, x.dim(0), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      if constexpr (std::is_same_v<T, float>) {
        if (!ctx.reference()) {
          softmax_of_this_cpu()(x.row(r), y.row(r), dim);
          continue;
        }
      }
      softmax_row(x.row(r), y.row(r), dim);
    }
  });
}

template <class T>
void softmax_backward_cpu(Context& ctx, Array<const T, 2> y, Array<const T, 2> dy, Array<T, 2> dx) {
  const int64_t dim = y.dim(1);
  for_row_panels(ctx, y.dim(0), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const T* out = y.row(r);
      const T* gradient = dy.row(r);
      T* to = dx.row(r);
      T along = 0;
#pragma omp simd reduction(+ : along)
      for (int64_t j = 0; j < dim; ++j) along += out[j] * gradient[j];
#pragma omp simd
      for (int64_t j = 0; j < dim; ++j) to[j] = out[j] * (gradient[j] - along);
    }
  });
}

}  // namespace

SoftmaxRow softmax_of_this_cpu() {
#if defined(__x86_64__)
  if (cpu_level() == CpuLevel::v4) return v4::softmax_row;
#endif
  return v3::softmax_row;
}

void softmax(Context& ctx, ConstTensorView x, TensorView y) {
  const char* op = "softmax";
  ctx.require_here(op, x, y);
  require(x.rank() == 2, op, ": x must be [rows, dim], got ", x.shape());
  require_tensor(op, "y", y, x.shape(), x.dtype());
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda()) return cuda::softmax(ctx, x, y);
  }
  visit_real(x.dtype(), [&]<class T>(Type<T>) { softmax_cpu<T>(ctx, x.as<T, 2>(), y.as<T, 2>()); });
}

void softmax_backward(Context& ctx, ConstTensorView y, ConstTensorView dy, TensorView dx) {
  const char* op = "softmax_backward";
  ctx.require_here(op, y, dy, dx);
  require(y.rank() == 2, op, ": y must be [rows, dim], got ", y.shape());
  require_tensor(op, "dy", dy, y.shape(), y.dtype());
  require_tensor(op, "dx", dx, y.shape(), y.dtype());
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda()) return cuda::softmax_backward(ctx, y, dy, dx);
  }
  visit_real(y.dtype(), [&]<class T>(Type<T>) {
    softmax_backward_cpu<T>(ctx, y.as<T, 2>(), dy.as<T, 2>(), dx.as<T, 2>());
  });
}

}  // namespace scgraft
