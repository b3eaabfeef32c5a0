// SPDX-License-Identifier: Apache-2.0
#include "kernels/favor_attention_simd.h"

#include "kernels/simd.h"
#include "kernels/simd_gemm.h"

// One head of one span, kRows tokens at a time: their features are a matrix in scratch, everything
// else is a product with it.
namespace scgraft::SCGRAFT_SIMD_LEVEL {
namespace {

constexpr int64_t kRows = 64;
constexpr float kLog2E = 1.44269504088896341f;

int64_t padded(int64_t floats) { return vectors(floats) * kLanes; }
int64_t whole_lines(int64_t floats) { return (floats + 15) / 16 * 16; }
int64_t panels(int64_t columns) { return (columns + kPanel - 1) / kPanel; }
int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

int64_t columns_floats(int64_t features, int64_t head_dim) {
  return whole_lines(panels(features) * kPanel * head_dim);
}
int64_t packed(int64_t features, int64_t head_dim) {
  return columns_floats(features, head_dim) + whole_lines(features * padded(head_dim));
}
void pack(const float* matrix, int64_t features, int64_t head_dim, float* to) {
  pack_transposed(matrix, head_dim, features, head_dim, to);
  pack_rows(matrix, head_dim, features, head_dim, 1.0f, to + columns_floats(features, head_dim));
}

// The two operands of pack().
GemmB over_columns(const float* packed, const FavorHead& head) {
  return {packed, kPanel, head.head_dim * kPanel};
}
GemmB over_rows(const float* packed, const FavorHead& head) {
  return {packed + columns_floats(head.features, head.head_dim), padded(head.head_dim), kPanel};
}

struct Scratch {
  float* x;     // [kRows][width], tokens times the factor
  float* y;     // [kRows][width]
  float* z;     // [kRows][width]
  float* e;     // [kRows][wide], u, then the features without the floor
  float* g;     // [kRows][wide]
  float* psi;   // [kRows][wide]
  float* half;  // [kRows], s(x)
  float* mass;  // [wide], zeros behind the last feature
  float* matrix;
  int64_t used;

  Scratch(float* base, int64_t features, int64_t head_dim) {
    const int64_t width = padded(head_dim), wide = padded(features);
    used = 0;
    const auto take = [&](int64_t floats) {
      float* piece = base == nullptr ? nullptr : base + used;
      used += whole_lines(floats);
      return piece;
    };
    x = take(kRows * width);
    y = take(kRows * width);
    z = take(kRows * width);
    e = take(kRows * wide);
    g = take(kRows * wide);
    psi = take(kRows * wide);
    half = take(kRows);
    mass = take(wide);
    matrix = take(packed(features, head_dim));
  }
  void set_mass(const float* from, int64_t features) const {
    pack_rows(from, features, 1, features, 1.0f, mass);
  }
};

int64_t scratch_floats(int64_t features, int64_t head_dim) {
  return Scratch(nullptr, features, head_dim).used;
}

// u of some tokens into s.e, -inf behind the last feature; s.x and s.half beside it.
void project(const FavorHead& head, const Scratch& s, const float* tokens, int64_t rows) {
  const int64_t width = padded(head.head_dim), wide = padded(head.features);
  pack_rows(tokens, head.stride, rows, head.head_dim, head.factor, s.x);
  gemm({s.x, width, 1}, over_columns(head.projection, head), {s.e, wide}, rows,
       vectors(head.features), head.head_dim, false);
  for (int64_t r = 0; r < rows; ++r) {
    VecF square = {};
    for (int64_t d = 0; d < width; d += kLanes)
      square += load(s.x + r * width + d) * load(s.x + r * width + d);
    s.half[r] = 0.5f * sum_of(square);
    for (int64_t j = head.features; j < wide; ++j) s.e[r * wide + j] = -__builtin_inff();
  }
}

float largest_of(const float* u, int64_t wide) {
  VecF top = load(u);
  for (int64_t j = kLanes; j < wide; j += kLanes) top = vmax(top, load(u + j));
  return max_of(top);
}
// u is followed by -inf up to `wide`.
int64_t first_of(const float* u, int64_t wide, float value) {
  for (int64_t j = 0; j < wide; j += kLanes)
    if (const uint32_t equal = bits_of(load(u + j) == value)) return j + __builtin_ctz(equal);
  return 0;  // no number equals NaN
}

// u of a token, -inf behind the last feature, becomes its features without the floor: exp(u - half
// - shift), or max(u, 0) with a shift of 0.
void activate(const FavorHead& head, float* u, float half, float shift) {
  const int64_t wide = padded(head.features);
  if (head.relu) {
    // In this order NaN stays NaN.
    for (int64_t j = 0; j < wide; j += kLanes) store(u + j, vmax(VecF{}, load(u + j)));
    return;
  }
  for (int64_t j = 0; j < wide; j += kLanes)
    store(u + j, exp2_nonpositive(((load(u + j) - shift) - half) * kLog2E));
}
// The shift of a query: its largest u; relu: 0.
float shift_of(const FavorHead& head, const float* u) {
  return head.relu ? 0.0f : largest_of(u, padded(head.features));
}
void add_floor(const FavorHead& head, const float* e, int64_t floats, float* psi) {
  for (int64_t j = 0; j < floats; j += kLanes) store(psi + j, load(e + j) + head.floor);
}
float dot(const float* a, const float* b, int64_t padded_floats) {
  VecF sum = {};
  for (int64_t j = 0; j < padded_floats; j += kLanes) sum += load(a + j) * load(b + j);
  return sum_of(sum);
}
void clear(float* p, int64_t floats) {
  for (int64_t i = 0; i < floats; ++i) p[i] = 0;
}
// to += factor * from
void add_scaled(const float* from, int64_t padded_floats, float factor, float* to) {
  for (int64_t j = 0; j < padded_floats; j += kLanes)
    store(to + j, load(to + j) + factor * load(from + j));
}

// Raises the shift of the span to the largest u of these rows, in s.e, where that is more. What has
// been summed so far fades with it.
void raise_shift(const FavorKeys& span, const Scratch& s, int64_t begin, int64_t rows) {
  const FavorHead& head = span.head;
  const int64_t width = padded(head.head_dim), wide = padded(head.features);
  const float before = *span.shift;
  for (int64_t r = 0; r < rows; ++r) {
    const float top = largest_of(s.e + r * wide, wide);
    if (!(top > *span.shift)) continue;
    *span.shift = top;
    *span.peak = (begin + r) * head.features + first_of(s.e + r * wide, wide, top);
  }
  if (!(*span.shift > before)) return;
  // Of nothing, 0 remains.
  const float factor = exp2_nonpositive(splat((before - *span.shift) * kLog2E))[0];
  for (int64_t i = 0; i < head.features * width; i += kLanes)
    store(span.sums + i, factor * load(span.sums + i));
  for (int64_t j = 0; j < wide; j += kLanes) store(span.mass + j, factor * load(span.mass + j));
}

void keys(const FavorKeys& span, float* scratch) {
  const FavorHead& head = span.head;
  const Scratch s(scratch, head.features, head.head_dim);
  const int64_t width = padded(head.head_dim), wide = padded(head.features);
  clear(span.sums, head.features * width);
  clear(span.mass, wide);
  clear(span.values, width);
  *span.peak = 0;
  *span.shift = head.relu ? 0.0f : -__builtin_inff();
  for (int64_t begin = 0; begin < head.rows; begin += kRows) {
    const int64_t rows = smaller(kRows, head.rows - begin);
    project(head, s, span.k + begin * head.stride, rows);
    pack_rows(span.v + begin * head.stride, head.stride, rows, head.head_dim, 1.0f, s.y);
    if (!head.relu) raise_shift(span, s, begin, rows);
    for (int64_t r = 0; r < rows; ++r) {
      activate(head, s.e + r * wide, s.half[r], *span.shift);
      add_scaled(s.e + r * wide, wide, 1.0f, span.mass);
      add_scaled(s.y + r * width, width, 1.0f, span.values);
    }
    gemm({s.e, 1, wide}, {s.y, width, kPanel}, {span.sums, width}, head.features,
         vectors(head.head_dim), rows, true);
  }
}

// psi of some queries into s.e and psi . mass, of the mass in s.mass, into s.half.
void query_features(const FavorHead& head, const Scratch& s, const float* q, int64_t rows) {
  const int64_t wide = padded(head.features);
  project(head, s, q, rows);
  for (int64_t r = 0; r < rows; ++r) {
    float* psi = s.e + r * wide;
    activate(head, psi, s.half[r], shift_of(head, psi));
    add_floor(head, psi, wide, psi);
    s.half[r] = dot(psi, s.mass, wide);
  }
}

void queries(const FavorQueries& span, float* scratch) {
  const FavorHead& head = span.head;
  const Scratch s(scratch, head.features, head.head_dim);
  const int64_t width = padded(head.head_dim), wide = padded(head.features);
  pack_rows(span.sums, head.head_dim, head.features, head.head_dim, 1.0f, s.matrix);
  s.set_mass(span.mass, head.features);
  for (int64_t begin = 0; begin < head.rows; begin += kRows) {
    const int64_t rows = smaller(kRows, head.rows - begin);
    query_features(head, s, span.q + begin * head.stride, rows);
    gemm({s.e, wide, 1}, {s.matrix, width, kPanel}, {s.y, width}, rows, vectors(head.head_dim),
         head.features, false);
    for (int64_t r = 0; r < rows; ++r)
      unpack_rows(s.y + r * width, 1, head.head_dim, 1.0f / s.half[r],
                  span.out + (begin + r) * head.stride, head.stride);
  }
}

// The sums of a row of s.g with `weight` of the mass, which are the gradient of psi, become that of
// u before the maximum's. Returns their sum, which is the gradient of -s(x); relu has none of that:
// 0.
float feature_gradient(const FavorHead& head, const Scratch& s, int64_t row, float weight) {
  const int64_t wide = padded(head.features);
  const float* e = s.e + row * wide;
  float* g = s.g + row * wide;
  VecF sum = {};
  for (int64_t j = 0; j < wide; j += kLanes) {
    const VecF of_psi = load(g + j) + weight * load(s.mass + j);
    const VecF feature = load(e + j);
    const VecF of_u = (head.relu ? select(feature > 0.0f, splat(1.0f), VecF{}) : feature) * of_psi;
    store(g + j, of_u);
    sum += of_u;
  }
  return head.relu ? 0.0f : sum_of(sum);
}

// dx of some tokens from s.g, the gradient of u, and `total`, that of -s(x).
void store_gradient(const FavorHead& head, const Scratch& s, int64_t rows, const float* total,
                    float* dx) {
  const int64_t width = padded(head.head_dim), wide = padded(head.features);
  gemm({s.g, wide, 1}, over_rows(head.projection, head), {s.z, width}, rows, vectors(head.head_dim),
       head.features, false);
  for (int64_t r = 0; r < rows; ++r) add_scaled(s.x + r * width, width, -total[r], s.z + r * width);
  unpack_rows(s.z, rows, head.head_dim, head.factor, dx, head.stride);
}

void query_gradient(const FavorQueryGradient& span, float* scratch) {
  const FavorHead& head = span.head;
  const Scratch s(scratch, head.features, head.head_dim);
  const int64_t width = padded(head.head_dim), wide = padded(head.features);
  if (span.dq) pack_transposed(span.sums, head.head_dim, head.features, head.head_dim, s.matrix);
  s.set_mass(span.mass, head.features);
  if (span.dsums) {
    clear(span.dsums, head.features * width);
    clear(span.dmass, wide);
  }
  float total[kRows], delta[kRows];
  int64_t top_feature[kRows];
  for (int64_t begin = 0; begin < head.rows; begin += kRows) {
    const int64_t rows = smaller(kRows, head.rows - begin);
    const int64_t at = begin * head.stride;
    project(head, s, span.q + at, rows);
    for (int64_t r = 0; r < rows; ++r) {
      float* e = s.e + r * wide;
      float* psi = s.psi + r * wide;
      const float top = shift_of(head, e);
      top_feature[r] = first_of(e, wide, top);
      activate(head, e, s.half[r], top);
      add_floor(head, e, wide, psi);
      const float inverse = 1.0f / dot(psi, s.mass, wide);
      pack_rows(span.out + at + r * head.stride, head.stride, 1, head.head_dim, 1.0f, s.z);
      pack_rows(span.dout + at + r * head.stride, head.stride, 1, head.head_dim, inverse,
                s.y + r * width);
      delta[r] = dot(s.y + r * width, s.z, width);
      if (span.dsums) add_scaled(psi, wide, -delta[r], span.dmass);
    }
    if (span.dsums)
      gemm({s.psi, 1, wide}, {s.y, width, kPanel}, {span.dsums, width}, head.features,
           vectors(head.head_dim), rows, true);
    if (!span.dq) continue;
    gemm({s.y, width, 1}, over_columns(s.matrix, head), {s.g, wide}, rows, vectors(head.features),
         head.head_dim, false);
    for (int64_t r = 0; r < rows; ++r) {
      total[r] = feature_gradient(head, s, r, -delta[r]);
      s.g[r * wide + top_feature[r]] -= total[r];
    }
    store_gradient(head, s, rows, total, span.dq + at);
  }
}

void key_gradient(const FavorKeyGradient& span, float* scratch) {
  const FavorHead& head = span.head;
  const Scratch s(scratch, head.features, head.head_dim);
  const int64_t width = padded(head.head_dim), wide = padded(head.features);
  pack(span.dsums, head.features, head.head_dim, s.matrix);
  s.set_mass(span.dmass, head.features);
  float all = 0;
  float total[kRows];
  for (int64_t begin = 0; begin < head.rows; begin += kRows) {
    const int64_t rows = smaller(kRows, head.rows - begin);
    const int64_t at = begin * head.stride;
    project(head, s, span.k + at, rows);
    for (int64_t r = 0; r < rows; ++r) activate(head, s.e + r * wide, s.half[r], span.largest);
    if (span.dv) {
      add_floor(head, s.e, rows * wide, s.psi);
      gemm({s.psi, wide, 1}, over_rows(s.matrix, head), {s.z, width}, rows, vectors(head.head_dim),
           head.features, false);
      unpack_rows(s.z, rows, head.head_dim, 1.0f, span.dv + at, head.stride);
    }
    if (!span.dk) continue;
    pack_rows(span.v + at, head.stride, rows, head.head_dim, 1.0f, s.y);
    gemm({s.y, width, 1}, over_columns(s.matrix, head), {s.g, wide}, rows, vectors(head.features),
         head.head_dim, false);
    for (int64_t r = 0; r < rows; ++r) {
      total[r] = feature_gradient(head, s, r, 1.0f);
      all += total[r];
    }
    store_gradient(head, s, rows, total, span.dk + at);
  }
  if (span.dk) *span.total = all;
}

void query_weights(const FavorQueryWeights& span, float* scratch) {
  const FavorHead& head = span.head;
  const Scratch s(scratch, head.features, head.head_dim);
  const int64_t wide = padded(head.features);
  s.set_mass(span.mass, head.features);
  clear(span.weights, wide);
  for (int64_t begin = 0; begin < head.rows; begin += kRows) {
    const int64_t rows = smaller(kRows, head.rows - begin);
    query_features(head, s, span.q + begin * head.stride, rows);
    for (int64_t r = 0; r < rows; ++r)
      add_scaled(s.e + r * wide, wide, 1.0f / s.half[r], span.weights);
  }
}

void received(const FavorReceived& span, float* scratch) {
  const FavorHead& head = span.head;
  const Scratch s(scratch, head.features, head.head_dim);
  const int64_t wide = padded(head.features);
  s.set_mass(span.weights, head.features);
  for (int64_t begin = 0; begin < head.rows; begin += kRows) {
    const int64_t rows = smaller(kRows, head.rows - begin);
    project(head, s, span.k + begin * head.stride, rows);
    for (int64_t r = 0; r < rows; ++r) {
      float* psi = s.e + r * wide;
      activate(head, psi, s.half[r], span.largest);
      add_floor(head, psi, wide, psi);
      span.received[begin + r] = dot(psi, s.mass, wide);
    }
  }
}

}  // namespace

const FavorSimd favor_simd = {padded,  packed,         pack,         scratch_floats, keys,
                              queries, query_gradient, key_gradient, query_weights,  received};

}  // namespace scgraft::SCGRAFT_SIMD_LEVEL
