// SPDX-License-Identifier: Apache-2.0
#include "kernels/activation_simd.h"

#include "kernels/simd.h"

namespace scgraft::SCGRAFT_SIMD_LEVEL {
namespace {

constexpr float kLog2E = 1.44269504088896341f;

// (1 + erf(x / sqrt(2))) / 2.
VecF normal_below(VecF x) { return 0.5f * (1.0f + erf(0.707106781f * x)); }

VecF gelu(VecF x) { return x * normal_below(x); }

VecF slope(VecF x) {
  const VecF density = 0.398942280f * exp2_nonpositive((-0.5f * kLog2E) * x * x);
  return normal_below(x) + x * density;
}

// y = f(a...) in whole vectors; the last one is filled up with zeros.
template <class F, class... In>
void map(float* y, int64_t n, F&& f, const In*... a) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, f(load(a + i)...));
  if (i == n) return;
  const auto part = [&](const float* p) {
    float padded[kLanes] = {};
    __builtin_memcpy(padded, p + i, static_cast<size_t>(n - i) * sizeof(float));
    return load(padded);
  };
  const VecF last = f(part(a)...);
  __builtin_memcpy(y + i, &last, static_cast<size_t>(n - i) * sizeof(float));
}

void forward(const float* x, float* y, int64_t n) { map(y, n, gelu, x); }

void backward(const float* x, const float* dy, float* dx, int64_t n) {
  map(
      dx, n, [](VecF v, VecF grad) { return slope(v) * grad; }, x, dy);
}

}  // namespace

extern const GeluLoops gelu_loops;
const GeluLoops gelu_loops = {forward, backward};

}  // namespace scgraft::SCGRAFT_SIMD_LEVEL
