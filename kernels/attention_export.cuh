// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <limits>

#include "kernels/attention_device.cuh"
#include "kernels/attention_export.h"
#include "kernels/attention_launch.cuh"
#include "kernels/require_tensor.h"
#include "runtime/gpu/gpu.cuh"

// What the kernels of attention_export.h share: weights from scores, the tiles of f32 cores, and
// what a call looks like to all of them.
namespace scgraft::cuda {

// p_ij = 2^(product * scale_log2 + shift), where shift = -L_i * log2(e). The shift of a
// query without keys is 0: its scores are all hidden, -inf, which makes p_ij 0.
__device__ __forceinline__ float weight_of(float product, float scale_log2, float shift) {
  return gpu::exp2_fast(fmaf(product, scale_log2, shift));
}
__device__ __forceinline__ float shift_of(const AttentionProblem& p, const float* lse,
                                          int64_t query_row, int64_t head) {
  const float l = lse[query_row * p.heads + head];
  return l == -std::numeric_limits<float>::infinity() ? 0.0f : -kLog2E * l;
}

inline constexpr int kTileRows = 64;  // of the tile that a block of f32 cores owns
inline constexpr int kTileColumns = 32;
inline constexpr int kTileThreads = 2 * kTileRows;

// What the kernels of one call have in common.
template <class T>
struct ExportCall {
  AttentionProblem p;
  AttentionSizes sizes;
  const T *q, *k, *prefix_k;
  const float* lse;

  ExportCall(const char* op, Context& ctx, const AttentionPass& pass)
      : p(attention_problem(op, ctx, pass.queries, pass.keys, pass.heads,
                            pass.q.dim(1) / pass.heads, Dropout{}, ctx.random(), pass.mask,
                            pass.prefix, {pass.q, pass.k, pass.prefix.k})),
        sizes(pass.queries, pass.keys, pass.heads),
        q(pass.q.as<T>()),
        k(pass.k.as<T>()),
        prefix_k(data_or_null<T>(pass.prefix.k)),
        lse(pass.lse.as<float>()) {}
};

}  // namespace scgraft::cuda
