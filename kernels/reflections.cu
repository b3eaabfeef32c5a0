// SPDX-License-Identifier: Apache-2.0
#include "kernels/reflections.h"
#include "kernels/rows.cuh"

namespace scgraft::cuda {
namespace {

constexpr float kFloor = 1e-12f;
constexpr int kWarps = 16;
constexpr int kThreads = kWarps * gpu::kWarp;

// Rows of the chain [rank, in], as kernels/reflections.cc keeps them.
struct Chain {
  int in, rank;
  float *v, *a, *p;
};
// Shared memory of a block.
struct Shared {
  float *length, *along, *dalong;  // [rank], [2, rank], [2, rank]
  SCGRAFT_HD Shared(gpu::SharedCarver& carver, int rank)
      : length(carver.take<float>(rank)),
        along(carver.take<float>(2 * rank)),
        dalong(carver.take<float>(2 * rank)) {}
};

// x . y over a row, the same bits in all lanes of the warp.
__device__ __forceinline__ float dot(const float* x, const float* y, int n) {
  float sum = 0;
  for (int i = gpu::lane(); i < n; i += gpu::kWarp) sum += x[i] * y[i];
  return gpu::warp_sum(sum);
}

// Writes the chain of u. The whole block calls it; all of it can be read afterwards.
__device__ void form(const float* u, const Chain& c, const Shared& shared) {
  const int lane = gpu::lane();
  for (int r = gpu::warp(); r < c.rank; r += kWarps) {
    float square = 0;
    for (int i = lane; i < c.in; i += gpu::kWarp) {
      const float x = u[int64_t{i} * c.rank + r];
      square += x * x;
    }
    float length = sqrtf(gpu::warp_sum(square));
    // Not fmaxf: the comparison must let a NaN through.
    if (length < kFloor) length = kFloor;
    if (lane == 0) shared.length[r] = length;
    float* n = c.v + int64_t{r} * c.in;
    for (int i = lane; i < c.in; i += gpu::kWarp) n[i] = u[int64_t{i} * c.rank + r] / length;
  }
  gpu::sync_block();
  // A warp owns a pair; a lane reads only what it has written.
  for (int k = 2 * gpu::warp(); k < c.rank; k += 2 * kWarps) {
    const int64_t first = int64_t{k} * c.in, second = first + c.in;
    float square = 0;
    for (int i = lane; i < c.in; i += gpu::kWarp) {
      const float v = c.v[second + i] - c.v[first + i];
      c.v[second + i] = v;
      square += v * v;
    }
    const float s = gpu::warp_sum(square);
    for (int i = lane; i < c.in; i += gpu::kWarp) {
      const float n = c.v[first + i], v = c.v[second + i];
      c.a[first + i] = 2.0f * s * n + 2.0f * (s - 1.0f) * v;
      c.a[second + i] = 2.0f * (n + v);
    }
  }
  gpu::sync_block();
  for (int k = 0; k < c.rank; k += 2) {
    for (int t = gpu::warp(); t < 2 * k; t += kWarps) {
      const int j = t / 2, w = t % 2;
      const float along = dot(c.a + int64_t{j} * c.in, c.v + int64_t{k + w} * c.in, c.in);
      if (lane == 0) shared.along[w * c.rank + j] = along;
    }
    gpu::sync_block();
    // A thread owns features: what it reads of earlier rows it has written.
    for (int i = static_cast<int>(threadIdx.x); i < c.in; i += kThreads) {
      const int64_t first = int64_t{k} * c.in + i;
      float p1 = c.v[first], p2 = c.v[first + c.in];
      for (int j = 0; j < k; ++j) {
        const float p = c.p[int64_t{j} * c.in + i];
        p1 -= shared.along[j] * p;
        p2 -= shared.along[c.rank + j] * p;
      }
      c.p[first] = p1;
      c.p[first + c.in] = p2;
    }
    gpu::sync_block();
  }
}

// One block: the pairs follow one another, and u is small. Time is that of rank / 2 rounds of
// products of rows, which lie in the second-level cache; nothing of it is bound by memory.
__global__ void __launch_bounds__(kThreads) reflections_kernel(const float* u, Chain c) {
  gpu::SharedCarver carver(gpu::shared_memory());
  form(u, c, Shared(carver, c.rank));
}

// As above, and the same number of rounds back.
//   da, dp  [rank, in]  used up
__global__ void __launch_bounds__(kThreads)
    reflections_backward_kernel(const float* u, Chain c, float* da, float* dp, float* du) {
  gpu::SharedCarver carver(gpu::shared_memory());
  const Shared shared(carver, c.rank);
  const int lane = gpu::lane();
  form(u, c, shared);
  for (int k = c.rank - 2; k >= 0; k -= 2) {
    // dp of this pair is complete: only later pairs have used its p.
    for (int t = gpu::warp(); t < 2 * k; t += kWarps) {
      const int j = t / 2, w = t % 2;
      const int64_t from = int64_t{j} * c.in, to = int64_t{k + w} * c.in;
      const float along = dot(c.a + from, c.v + to, c.in);
      const float dalong = -dot(c.p + from, dp + to, c.in);
      if (lane == 0) {
        shared.along[w * c.rank + j] = along;
        shared.dalong[w * c.rank + j] = dalong;
      }
    }
    gpu::sync_block();
    for (int i = static_cast<int>(threadIdx.x); i < c.in; i += kThreads) {
      const int64_t first = int64_t{k} * c.in + i, second = first + c.in;
      const float v1 = c.v[first], v2 = c.v[second], dp1 = dp[first], dp2 = dp[second];
      float dv1 = dp1, dv2 = dp2;
      for (int j = 0; j < k; ++j) {
        const int64_t at = int64_t{j} * c.in + i;
        const float g1 = shared.dalong[j], g2 = shared.dalong[c.rank + j];
        dp[at] -= shared.along[j] * dp1 + shared.along[c.rank + j] * dp2;
        da[at] += g1 * v1 + g2 * v2;
        dv1 += g1 * c.a[at];
        dv2 += g2 * c.a[at];
      }
      // From here on the row is the gradient by V.
      dp[first] = dv1;
      dp[second] = dv2;
    }
    gpu::sync_block();
  }
  // A warp owns a pair; a lane reads only what it has written.
  for (int k = 2 * gpu::warp(); k < c.rank; k += 2 * kWarps) {
    const int64_t first = int64_t{k} * c.in, second = first + c.in;
    const float *n = c.v + first, *v = c.v + second, *da1 = da + first, *da2 = da + second;
    float *dn1 = dp + first, *dn2 = dp + second;
    const float s = dot(v, v, c.in);
    const float ds = 2.0f * (dot(n, da1, c.in) + dot(v, da1, c.in));
    float along1 = 0, along2 = 0;
    for (int i = lane; i < c.in; i += gpu::kWarp) {
      const float d2 = dn2[i] + 2.0f * (s - 1.0f) * da1[i] + 2.0f * da2[i] + 2.0f * ds * v[i];
      const float d1 = dn1[i] + 2.0f * s * da1[i] + 2.0f * da2[i] - d2;
      dn1[i] = d1;
      dn2[i] = d2;
      along1 += n[i] * d1;
      along2 += (n[i] + v[i]) * d2;
    }
    // At the floor the length is a constant, and nothing is projected out.
    const float length1 = shared.length[k], length2 = shared.length[k + 1];
    along1 = gpu::warp_sum(along1);
    along2 = gpu::warp_sum(along2);
    if (!(length1 > kFloor)) along1 = 0;
    if (!(length2 > kFloor)) along2 = 0;
    for (int i = lane; i < c.in; i += gpu::kWarp) {
      float* to = du + int64_t{i} * c.rank + k;
      to[0] += (dn1[i] - n[i] * along1) / length1;
      to[1] += (dn2[i] - (n[i] + v[i]) * along2) / length2;
    }
  }
}

int64_t shared_bytes(int rank) {
  gpu::SharedCarver carver(nullptr);
  const Shared arrays(carver, rank);
  return carver.used();
}

void require_f32(const ConstTensorView& u) {
  require<TypeError>(u.dtype() == DType::f32, "on a GPU reflections are f32, got ", u.dtype());
}

}  // namespace

void reflections(Context& ctx, ConstTensorView u, TensorView a, TensorView p) {
  require_f32(u);
  if (u.numel() == 0) return;
  Arena::Scope scratch(ctx.scratch());
  const auto rank = static_cast<int>(u.dim(1));
  const Chain chain{static_cast<int>(u.dim(0)), rank,
                    scratch.take(a.shape(), DType::f32).as<float>(), a.as<float>(), p.as<float>()};
  launch(ctx, "reflections", reflections_kernel, {}, kThreads, shared_bytes(rank), u.as<float>(),
         chain);
}

void reflections_backward(Context& ctx, ConstTensorView u, ConstTensorView da, ConstTensorView dp,
                          TensorView du) {
  require_f32(u);
  if (u.numel() == 0) return;
  Arena::Scope scratch(ctx.scratch());
  const auto rank = static_cast<int>(u.dim(1));
  const auto rows = [&] { return scratch.take(da.shape(), DType::f32); };
  const Chain chain{static_cast<int>(u.dim(0)), rank, rows().as<float>(), rows().as<float>(),
                    rows().as<float>()};
  const TensorView a_gradient = rows(), p_gradient = rows();
  copy(ctx, da, a_gradient);
  copy(ctx, dp, p_gradient);
  launch(ctx, "reflections_backward", reflections_backward_kernel, {}, kThreads, shared_bytes(rank),
         u.as<float>(), chain, a_gradient.as<float>(), p_gradient.as<float>(), du.as<float>());
}

}  // namespace scgraft::cuda
