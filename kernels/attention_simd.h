// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

// What attention.cc asks of attention_simd.cc: one head of one cell at a time. Plain data only,
// since both sides are compiled for different CPU levels.
namespace scgraft {

// Dropout of one head of one cell (kernels/dropout.h).
struct HeadDropout {
  uint32_t threshold = 0;  // 0: nothing is dropped
  float scale = 1;         // of what is kept
  uint32_t site = 0;       // counter word 0, head included
  uint32_t cell = 0;       // counter word 1
  uint32_t key[2] = {};    // Philox key
};

// AttentionMask of one cell.
struct HeadMask {
  const int64_t* key_bits = nullptr;  // word 0 of the cell; null: all keys can be seen
  int64_t known = 0;                  // keys that others than themselves see: the first ones
  bool self = false;                  // query i sees key i even when that is not known
  bool causal = false;
};

// AttentionPrefix of one head, rows `stride` floats apart.
struct HeadPrefix {
  const float* k = nullptr;
  const float* v = nullptr;
  int64_t rows = 0;
};

// Rows of q, o and their gradients [queries, head_dim], of k, v and theirs [keys, head_dim] lie
// `stride` floats apart, those of lse `lse_stride`. keys > 0.
struct AttentionForward {
  const float* q;
  const float* k;
  const float* v;
  int64_t queries, keys, head_dim, stride, lse_stride;
  HeadDropout dropout;
  HeadMask mask;
  HeadPrefix prefix;
  float* o;
  float* lse;
};

// Gradients that are null are not computed; those of the prefix [prefix rows, head_dim] are without
// gaps. queries > 0, keys > 0.
struct AttentionBackward {
  const float* q;
  const float* k;
  const float* v;
  const float* o;
  const float* lse;
  const float* dout;
  int64_t queries, keys, head_dim, stride, lse_stride;
  HeadDropout dropout;
  HeadMask mask;
  HeadPrefix prefix;
  float* dq;
  float* dk;
  float* dv;
  float* prefix_dk;
  float* prefix_dv;
};

// The functions of one CPU level. `scratch` is 64-byte aligned and holds as many floats as
// *_scratch says for lengths that are at least those of the head.
struct AttentionSimd {
  int64_t (*forward_scratch)(int64_t keys, int64_t head_dim);
  void (*forward)(const AttentionForward& head, float* scratch);
  int64_t (*backward_scratch)(int64_t queries, int64_t head_dim);
  void (*backward)(const AttentionBackward& head, float* scratch);
  // y[i] = 2^x[i] as the softmax computes it, n a multiple of 16.
  void (*exp2)(const float* x, int64_t n, float* y);
};

namespace v3 {
extern const AttentionSimd attention_simd;
}
namespace v4 {  // x86-64 only
extern const AttentionSimd attention_simd;
}

}  // namespace scgraft
