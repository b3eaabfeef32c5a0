// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention_export_simd.h"

#include "kernels/simd.h"
#include "kernels/simd_gemm.h"

namespace scgraft::SCGRAFT_SIMD_LEVEL {
namespace {

constexpr float kLog2E = 1.44269504088896341f;

int64_t panels(int64_t keys) { return (keys + kPanel - 1) / kPanel; }
int64_t score_row(int64_t keys) { return panels(keys) * kPanel; }
int64_t key_floats(int64_t keys, int64_t head_dim) { return score_row(keys) * head_dim; }
int64_t query_floats(int64_t head_dim) { return kExportQueries * vectors(head_dim) * kLanes; }

void pack_keys(const float* k, int64_t stride, int64_t keys, int64_t head_dim, float* packed) {
  pack_transposed(k, stride, keys, head_dim, packed);
}

void scores(const float* q, int64_t stride, int64_t rows, const float* packed_keys, int64_t keys,
            int64_t head_dim, float* packed_queries, float* scores) {
  const float scale = kLog2E / __builtin_sqrtf(static_cast<float>(head_dim));
  pack_rows(q, stride, rows, head_dim, scale, packed_queries);
  gemm({packed_queries, vectors(head_dim) * kLanes, 1}, {packed_keys, kPanel, head_dim * kPanel},
       {scores, score_row(keys)}, rows, vectors(keys), head_dim, false);
}

void weights(float* scores, int64_t keys, float lse) {
  const VecF shift = splat(lse * kLog2E);
  for (int64_t j = 0; j < keys; j += kLanes)
    store(scores + j, exp2_nonpositive(load(scores + j) - shift));
}

}  // namespace

const AttentionExportSimd attention_export_simd{key_floats, query_floats, score_row,
                                                pack_keys,  scores,       weights};

}  // namespace scgraft::SCGRAFT_SIMD_LEVEL
