// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "kernels/activation.h"
#include "kernels/gelu.cuh"
#include "kernels/rows.cuh"

namespace scgraft::cuda {
namespace {

constexpr float kLeak = 0.01f, kSteepLeak = 0.1f;

// Comparisons are written so that NaN comes out as NaN.
template <Activation kKind>
__device__ __forceinline__ float apply(float x) {
  if constexpr (kKind == Activation::relu) {
    return x <= 0 ? 0.0f : x;
  } else if constexpr (kKind == Activation::leaky_relu) {
    return x < 0 ? kLeak * x : x;
  } else if constexpr (kKind == Activation::steep_leaky_relu) {
    return x < 0 ? kSteepLeak * x : x;
  } else if constexpr (kKind == Activation::gelu) {
    return gelu(x);
  } else if constexpr (kKind == Activation::tanh) {
    return tanhf(x);
  } else {
    const float e = expf(-fabsf(x));
    return (x < 0 ? e : 1.0f) / (1.0f + e);
  }
}

// The gradient by x, from the output, or from x itself for gelu.
template <Activation kKind>
__device__ __forceinline__ float apply_backward(float kept, float dy) {
  if constexpr (kKind == Activation::relu)
    return kept > 0 ? dy : 0.0f;
  else if constexpr (kKind == Activation::leaky_relu)
    return kept < 0 ? kLeak * dy : dy;
  else if constexpr (kKind == Activation::steep_leaky_relu)
    return kept < 0 ? kSteepLeak * dy : dy;
  else if constexpr (kKind == Activation::gelu)
    return dy * gelu_slope(kept);
  else if constexpr (kKind == Activation::tanh)
    return dy * (1.0f - kept * kept);
  else
    return dy * (kept * (1.0f - kept));
}

// A thread owns eight elements and reads them before it writes: y may be x.
// Memory: reads x, writes y once; that bounds it.
template <class T, Activation kKind, bool kVectors>
__global__ void __launch_bounds__(kFlatThreads) activation_kernel(const T* x, int64_t n, T* y) {
  const int64_t first = flat_first();
  if (first >= n) return;
  float v[kPiece];
  load_flat<kVectors>(x, first, n, v);
  UNROLL
  for (int i = 0; i < kPiece; ++i) v[i] = apply<kKind>(v[i]);
  store_flat<kVectors>(y, first, n, v);
}

// The same with what was kept and dy read and dx written; dx may be dy.
template <class T, Activation kKind, bool kVectors>
__global__ void __launch_bounds__(kFlatThreads)
    activation_backward_kernel(const T* kept, const T* dy, int64_t n, T* dx) {
  const int64_t first = flat_first();
  if (first >= n) return;
  float from[kPiece], v[kPiece];
  load_flat<kVectors>(kept, first, n, from);
  load_flat<kVectors>(dy, first, n, v);
  UNROLL
  for (int i = 0; i < kPiece; ++i) v[i] = apply_backward<kKind>(from[i], v[i]);
  store_flat<kVectors>(dx, first, n, v);
}

template <Activation kKind>
struct Kind {};

template <class F>
void visit_kind(Activation kind, F&& f) {
  switch (kind) {
    case Activation::relu:
      return f(Kind<Activation::relu>{});
    case Activation::leaky_relu:
      return f(Kind<Activation::leaky_relu>{});
    case Activation::steep_leaky_relu:
      return f(Kind<Activation::steep_leaky_relu>{});
    case Activation::sigmoid:
      return f(Kind<Activation::sigmoid>{});
    case Activation::tanh:
      return f(Kind<Activation::tanh>{});
    case Activation::gelu:
      return f(Kind<Activation::gelu>{});
  }
}

}  // namespace

void activation(Context& ctx, Activation kind, ConstTensorView x, TensorView y) {
  const int64_t n = x.numel();
  visit_storage(x.dtype(), [&]<class T>(Type<T>) {
    const bool vectors = rows_fit_vectors(kPiece, x.as<T>(), y.as<T>());
    visit_kind(kind, [&]<Activation kKind>(Kind<kKind>) {
      launch(ctx, "activation",
             vectors ? activation_kernel<T, kKind, true> : activation_kernel<T, kKind, false>,
             flat_grid(n), kFlatThreads, 0, x.as<T>(), n, y.as<T>());
    });
  });
}

void activation_backward(Context& ctx, Activation kind, ConstTensorView kept, ConstTensorView dy,
                         TensorView dx) {
  const int64_t n = kept.numel();
  visit_storage(kept.dtype(), [&]<class T>(Type<T>) {
    const bool vectors = rows_fit_vectors(kPiece, kept.as<T>(), dy.as<T>(), dx.as<T>());
    visit_kind(kind, [&]<Activation kKind>(Kind<kKind>) {
      launch(ctx, "activation_backward",
             vectors ? activation_backward_kernel<T, kKind, true>
                     : activation_backward_kernel<T, kKind, false>,
             flat_grid(n), kFlatThreads, 0, kept.as<T>(), dy.as<T>(), n, dx.as<T>());
    });
  });
}

}  // namespace scgraft::cuda
