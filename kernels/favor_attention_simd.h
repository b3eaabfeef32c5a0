// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

// What favor_attention.cc asks of favor_attention_simd.cc: one head of one span of a cell at a
// time. Plain data only, since both sides are compiled for different CPU levels.
namespace scgraft {

// What a feature is more than exp(...), and more than max(u, 0).
inline constexpr double kFavorFloor = 1e-4;
inline constexpr double kFavorReluFloor = 1e-3;

// Rows of tokens [rows, head_dim] lie `stride` floats apart. rows > 0.
struct FavorHead {
  int64_t rows, stride, head_dim, features;
  float factor;             // head_dim^(-1/4)
  const float* projection;  // as pack() leaves it
  bool relu;                // FavorKernel::relu, else softmax
  float floor;              // what a feature is more than max(u, 0) or exp(...)
};

// Sums over the keys of a span, of features without the floor and with `shift` in place of the
// stabiliser.
struct FavorKeys {
  FavorHead head;
  const float* k;
  const float* v;
  float* sums;    // [features, width(head_dim)]
  float* mass;    // [width(features)]
  float* values;  // [width(head_dim)], the sum of v
  float* shift;   // [1], the largest u; relu: 0
  int64_t* peak;  // [1], where: row * features + feature; relu: 0
};

// sums [features, head_dim] and mass [features] as the definition has them.
struct FavorQueries {
  FavorHead head;
  const float* q;
  const float* sums;
  const float* mass;
  float* out;
};

struct FavorQueryGradient {
  FavorHead head;
  const float* q;
  const float* out;
  const float* dout;
  const float* sums;
  const float* mass;
  float* dq;     // null: not wanted
  float* dsums;  // [features, width(head_dim)] of the span, null: not wanted
  float* dmass;  // [width(features)] of the span, with dsums
};

struct FavorKeyGradient {
  FavorHead head;
  const float* k;
  const float* v;
  float largest;
  const float* dsums;  // [features, head_dim]
  const float* dmass;  // [features]
  float* dk;           // null: not wanted
  float* dv;           // null: not wanted
  float* total;        // [1], with dk: the sum of g; relu: 0
};

struct FavorQueryWeights {
  FavorHead head;
  const float* q;
  const float* mass;  // [features]
  float* weights;     // [width(features)], the sum of psi(q) / (psi(q) . mass)
};

struct FavorReceived {
  FavorHead head;
  const float* k;
  float largest;
  const float* weights;  // [features]
  float* received;       // [rows], psi(k) . weights
};

// The functions of one CPU level. `scratch` is 64-byte aligned and holds scratch() floats.
struct FavorSimd {
  int64_t (*width)(int64_t columns);  // floats of a padded row
  int64_t (*packed)(int64_t features, int64_t head_dim);
  // A matrix [features, head_dim] as operand of products over columns and over rows.
  void (*pack)(const float* matrix, int64_t features, int64_t head_dim, float* to);
  int64_t (*scratch)(int64_t features, int64_t head_dim);
  void (*keys)(const FavorKeys& span, float* scratch);
  void (*queries)(const FavorQueries& span, float* scratch);
  void (*query_gradient)(const FavorQueryGradient& span, float* scratch);
  void (*key_gradient)(const FavorKeyGradient& span, float* scratch);
  void (*query_weights)(const FavorQueryWeights& span, float* scratch);
  void (*received)(const FavorReceived& span, float* scratch);
};

namespace v3 {
extern const FavorSimd favor_simd;
}
namespace v4 {  // x86-64 only
extern const FavorSimd favor_simd;
}

}  // namespace scgraft
