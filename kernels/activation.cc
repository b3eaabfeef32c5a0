// SPDX-License-Identifier: Apache-2.0
#include "kernels/activation.h"

#include <cmath>
#include <numbers>
#include <type_traits>

#include "kernels/activation_simd.h"
#include "kernels/rows.h"
#include "runtime/cpu.h"

namespace scgraft {
namespace {

constexpr double kLeak = 0.01, kSteepLeak = 0.1;

void check(const char* op, Context& ctx, ConstTensorView first, const char* first_name,
           ConstTensorView second, const char* second_name) {
  ctx.require_here(op, first, second);
  require(first.shape() == second.shape(), op, ": ", first_name, " and ", second_name,
          " must have one shape, got ", first.shape(), " and ", second.shape());
  require<TypeError>(first.dtype() == second.dtype(), op, ": ", first_name, " and ", second_name,
                     " must have one type, got ", first.dtype(), " and ", second.dtype(),
                     "; convert one of them first");
}

// Comparisons are written so that NaN comes out as NaN.
template <class T>
T relu(T x) {
  return x <= 0 ? T(0) : x;
}
template <class T>
T leaky_relu(T x, double leak) {
  return x < 0 ? T(leak) * x : x;
}
template <class T>
T sigmoid(T x) {
  const T e = std::exp(-std::abs(x));
  return (x < 0 ? e : T(1)) / (1 + e);
}
// The share of a standard normal distribution below x.
template <class T>
T normal_below(T x) {
  return T(0.5) * (1 + std::erf(x / std::numbers::sqrt2_v<T>));
}
template <class T>
T normal_density(T x) {
  return std::exp(T(-0.5) * x * x) * std::numbers::inv_sqrtpi_v<T> / std::numbers::sqrt2_v<T>;
}

// y[i] = f(x[i]) over a range.
template <class T, class F>
void map(const T* x, T* y, int64_t n, F&& f) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = f(x[i]);
}
template <class T, class F>
void map(const T* a, const T* b, T* y, int64_t n, F&& f) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = f(a[i], b[i]);
}

// The library's exp is not vectorised. Nothing in a step applies the sigmoid to more than one value
// per token, or tanh to more than one row per cell, so they stay; relu and its leaky kinds, which
// see whole rows, become vector code, and the fast path of gelu is kernels/activation_simd.cc.
template <class T>
void forward(Activation kind, const T* x, T* y, int64_t n) {
  switch (kind) {
    case Activation::relu:
      return map(x, y, n, [](T v) { return relu(v); });
    case Activation::leaky_relu:
      return map(x, y, n, [](T v) { return leaky_relu(v, kLeak); });
    case Activation::steep_leaky_relu:
      return map(x, y, n, [](T v) { return leaky_relu(v, kSteepLeak); });
    case Activation::sigmoid:
      for (int64_t i = 0; i < n; ++i) y[i] = sigmoid(x[i]);
      return;
    case Activation::tanh:
      for (int64_t i = 0; i < n; ++i) y[i] = std::tanh(x[i]);
      return;
    case Activation::gelu:
      for (int64_t i = 0; i < n; ++i) y[i] = x[i] * normal_below(x[i]);
  }
}

template <class T>
void backward(Activation kind, const T* kept, const T* dy, T* dx, int64_t n) {
  switch (kind) {
    case Activation::relu:
      return map(kept, dy, dx, n, [](T out, T grad) { return out > 0 ? grad : T(0); });
    case Activation::leaky_relu:
      return map(kept, dy, dx, n, [](T out, T grad) { return out < 0 ? T(kLeak) * grad : grad; });
    case Activation::steep_leaky_relu:
      return map(kept, dy, dx, n,
                 [](T out, T grad) { return out < 0 ? T(kSteepLeak) * grad : grad; });
    case Activation::sigmoid:
      return map(kept, dy, dx, n, [](T out, T grad) { return grad * (out * (1 - out)); });
    case Activation::tanh:
      return map(kept, dy, dx, n, [](T out, T grad) { return grad * (1 - out * out); });
    case Activation::gelu:
      for (int64_t i = 0; i < n; ++i)
        dx[i] = dy[i] * (normal_below(kept[i]) + kept[i] * normal_density(kept[i]));
  }
}

}  // namespace

const GeluLoops& gelu_of_this_cpu() {
#if defined(__x86_64__)
  if (cpu_level() == CpuLevel::v4) return v4::gelu_loops;
#endif
  return v3::gelu_loops;
}

void activation(Context& ctx, Activation kind, ConstTensorView x, TensorView y) {
  check("activation", ctx, x, "x", y, "y");
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda()) return cuda::activation(ctx, kind, x, y);
  }
  visit_real(x.dtype(), [&]<class T>(Type<T>) {
    const T* px = x.as<T>();
    T* py = y.as<T>();
    if (ctx.reference()) return forward(kind, px, py, x.numel());
    for_element_blocks(ctx, x.numel(), [&](int64_t begin, int64_t end) {
      if constexpr (std::is_same_v<T, float>) {
        if (kind == Activation::gelu)
          return gelu_of_this_cpu().forward(px + begin, py + begin, end - begin);
      }
      forward(kind, px + begin, py + begin, end - begin);
    });
  });
}

void activation_backward(Context& ctx, Activation kind, ConstTensorView kept, ConstTensorView dy,
                         TensorView dx) {
  const char* name = kind == Activation::gelu ? "x" : "y";
  check("activation_backward", ctx, kept, name, dy, "dy");
  check("activation_backward", ctx, kept, name, dx, "dx");
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda()) return cuda::activation_backward(ctx, kind, kept, dy, dx);
  }
  visit_real(kept.dtype(), [&]<class T>(Type<T>) {
    const T* pk = kept.as<T>();
    const T* pdy = dy.as<T>();
    T* pdx = dx.as<T>();
    if (ctx.reference()) return backward(kind, pk, pdy, pdx, kept.numel());
    for_element_blocks(ctx, kept.numel(), [&](int64_t begin, int64_t end) {
      if constexpr (std::is_same_v<T, float>) {
        if (kind == Activation::gelu)
          return gelu_of_this_cpu().backward(pk + begin, pdy + begin, pdx + begin, end - begin);
      }
      backward(kind, pk + begin, pdy + begin, pdx + begin, end - begin);
    });
  });
}

}  // namespace scgraft
