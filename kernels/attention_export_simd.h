// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

// What attention_export.cc asks of attention_export_simd.cc: rows of scores and weights of one head
// of one cell. Plain data only, since both sides are compiled for different CPU levels.
namespace scgraft {

// Queries of one call of scores().
inline constexpr int64_t kExportQueries = 24;

// The functions of one CPU level. Scratch memory is 64-byte aligned. Scores are in units of log2:
// q_i . k_j * log2(e) / sqrt(head_dim).
struct AttentionExportSimd {
  // Floats of packed keys, of packed queries, and between rows of scores.
  int64_t (*key_floats)(int64_t keys, int64_t head_dim);
  int64_t (*query_floats)(int64_t head_dim);
  int64_t (*score_row)(int64_t keys);
  // k [keys, head_dim], rows `stride` floats apart.
  void (*pack_keys)(const float* k, int64_t stride, int64_t keys, int64_t head_dim, float* packed);
  // scores [rows, keys] of rows <= kExportQueries queries, in rows of score_row(keys).
  void (*scores)(const float* q, int64_t stride, int64_t rows, const float* packed_keys,
                 int64_t keys, int64_t head_dim, float* packed_queries, float* scores);
  // 2^(score - lse * log2(e)) of one row, in place.
  void (*weights)(float* scores, int64_t keys, float lse);
};

namespace v3 {
extern const AttentionExportSimd attention_export_simd;
}
namespace v4 {  // x86-64 only
extern const AttentionExportSimd attention_export_simd;
}

}  // namespace scgraft
