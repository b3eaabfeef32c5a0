// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/kernels/bench.h"
#include "runtime/launch.cuh"

namespace scgraft::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kChains = 8;    // independent sums of a thread, to hide the latency of one
constexpr int kPerTurn = 16;  // links of every chain in one turn of the loop

__global__ void __launch_bounds__(kThreads) multiply_adds_kernel(int64_t repeats, float* sink) {
  float sum[kChains];
  UNROLL
  for (int c = 0; c < kChains; ++c) sum[c] = static_cast<float>(threadIdx.x + c);
  const float factor = 1.0f - 1e-6f * static_cast<float>(gpu::lane());
  KEEP_LOOP
  for (int64_t turn = 0; turn < repeats; ++turn) {
    UNROLL
    for (int link = 0; link < kPerTurn; ++link) {
      UNROLL
      for (int c = 0; c < kChains; ++c) sum[c] = fmaf(sum[c], factor, 0.5f);
    }
  }
  float total = 0;
  UNROLL
  for (int c = 0; c < kChains; ++c) total += sum[c];
  if (total < 0) *sink = total;  // never: all terms are positive
}

// Of fragments of ones, so that sums stay positive. kWide: m16n8k16, else m16n8k8.
template <bool kWide>
__global__ void __launch_bounds__(kThreads) fragments_kernel(int64_t repeats, float* sink) {
  const uint32_t ones = gpu::pack2<f16>(1.0f, 1.0f);
  const uint32_t a[4] = {ones, ones, ones, ones};
  const uint32_t b[2] = {ones, ones};
  float sum[kChains][4] = {};
  KEEP_LOOP
  for (int64_t turn = 0; turn < repeats; ++turn) {
    UNROLL
    for (int link = 0; link < kPerTurn; ++link) {
      UNROLL
      for (int c = 0; c < kChains; ++c) {
        if constexpr (kWide)
          gpu::mma_m16n8k16<f16>(sum[c], a, b);
        else
          gpu::mma_m16n8k8(sum[c], {a[0], a[1]}, {b[0]});
      }
    }
  }
  float total = 0;
  UNROLL
  for (int c = 0; c < kChains; ++c) total += sum[c][0] + sum[c][1] + sum[c][2] + sum[c][3];
  if (total < 0) *sink = total;
}

}  // namespace

int64_t multiply_adds(Context& ctx, int64_t blocks, int64_t repeats, float* sink) {
  launch(ctx, "multiply_adds", multiply_adds_kernel, {.x = blocks}, kThreads, 0, repeats, sink);
  return blocks * kThreads * repeats * kPerTurn * kChains * 2;
}

int64_t fragment_products(Context& ctx, int64_t blocks, int64_t repeats, float* sink) {
  const bool wide = gpu::compute_capability(ctx.device()) >= 80;
  launch(ctx, "fragment_products", wide ? fragments_kernel<true> : fragments_kernel<false>,
         {.x = blocks}, kThreads, 0, repeats, sink);
  const int64_t products = blocks * (kThreads / gpu::kWarp) * repeats * kPerTurn * kChains;
  return products * (wide ? 2 * 16 * 8 * 16 : 2 * 16 * 8 * 8);
}

}  // namespace scgraft::cuda
