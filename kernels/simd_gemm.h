// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "kernels/simd.h"

// Small matrix products on packed operands for `*_simd.cc` files: C (+)= A B with C held in
// registers. Per step of the sum a micro tile loads one row of B (contiguous vectors) and kTileRows
// scalars of A, so that the multipliers, not the loads, are the limit.
namespace scgraft::SCGRAFT_SIMD_LEVEL {

// Rows and vectors of the largest register tile: 24 sums of 32 registers, or 12 of 16.
inline constexpr int kTileRows = 6;
#if defined(__AVX512F__)
inline constexpr int kPanelVecs = 4;
#else
inline constexpr int kPanelVecs = 2;
#endif
inline constexpr int kPanel = kPanelVecs * kLanes;  // columns of a panel

inline int64_t vectors(int64_t floats) { return (floats + kLanes - 1) / kLanes; }

// A(i, k) = data[i * row + k * step].
struct GemmA {
  const float* data;
  int64_t row;
  int64_t step;
};
// B(k, j) = data[(j / kPanel) * panel + k * step + j % kPanel].
struct GemmB {
  const float* data;
  int64_t step;
  int64_t panel;
};
// C(i, j) = data[i * row + j]
struct GemmC {
  float* data;
  int64_t row;
};

template <int kRows, int kVecs>
void gemm_tile(GemmA a, const float* b, int64_t b_step, GemmC c, int64_t depth, bool add) {
  VecF sum[kRows][kVecs];
  for (int i = 0; i < kRows; ++i)
    for (int v = 0; v < kVecs; ++v)
      sum[i][v] = add ? load(c.data + i * c.row + v * kLanes) : VecF{};
  for (int64_t k = 0; k < depth; ++k) {
    VecF row[kVecs];
    for (int v = 0; v < kVecs; ++v) row[v] = load(b + v * kLanes);
    for (int i = 0; i < kRows; ++i) {
      const VecF x = splat(a.data[i * a.row]);
      for (int v = 0; v < kVecs; ++v) sum[i][v] += x * row[v];
    }
    a.data += a.step;
    b += b_step;
  }
  for (int i = 0; i < kRows; ++i)
    for (int v = 0; v < kVecs; ++v) store(c.data + i * c.row + v * kLanes, sum[i][v]);
}

template <int kVecs>
void gemm_panel(GemmA a, const float* b, int64_t b_step, GemmC c, int64_t rows, int64_t depth,
                bool add) {
  for (; rows >= kTileRows; rows -= kTileRows) {
    gemm_tile<kTileRows, kVecs>(a, b, b_step, c, depth, add);
    a.data += kTileRows * a.row;
    c.data += kTileRows * c.row;
  }
  switch (rows) {
    case 5:
      return gemm_tile<5, kVecs>(a, b, b_step, c, depth, add);
    case 4:
      return gemm_tile<4, kVecs>(a, b, b_step, c, depth, add);
    case 3:
      return gemm_tile<3, kVecs>(a, b, b_step, c, depth, add);
    case 2:
      return gemm_tile<2, kVecs>(a, b, b_step, c, depth, add);
    case 1:
      return gemm_tile<1, kVecs>(a, b, b_step, c, depth, add);
    default:
      return;
  }
}

// C[rows, vecs * kLanes] = A[rows, depth] B[depth, vecs * kLanes], added to C when `add`.
// Every element is one sum over k in rising order.
inline void gemm(GemmA a, GemmB b, GemmC c, int64_t rows, int64_t vecs, int64_t depth, bool add) {
  for (; vecs >= kPanelVecs; vecs -= kPanelVecs) {
    gemm_panel<kPanelVecs>(a, b.data, b.step, c, rows, depth, add);
    b.data += b.panel;
    c.data += kPanel;
  }
  if (vecs == 0) return;
#if defined(__AVX512F__)
  if (vecs == 3) return gemm_panel<3>(a, b.data, b.step, c, rows, depth, add);
  if (vecs == 2) return gemm_panel<2>(a, b.data, b.step, c, rows, depth, add);
#endif
  gemm_panel<1>(a, b.data, b.step, c, rows, depth, add);
}

// a0 b0 a1 b1 ... of the first and of the second half of the lanes.
template <class Vec>
Vec interleave_low(Vec a, Vec b) {
#if defined(__AVX512F__)
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
#else
  return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
#endif
}
template <class Vec>
Vec interleave_high(Vec a, Vec b) {
#if defined(__AVX512F__)
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15,
                                 31);
#else
  return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#endif
}

// The first `count` floats at p, the other lanes 0; reads nothing beyond them.
inline VecF load_some(const float* p, int64_t count) {
  if (count >= kLanes) return load(p);
  float lanes[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = p[i];
  return load(lanes);
}
inline void store_some(float* p, VecF v, int64_t count) {
  if (count >= kLanes) return store(p, v);
  float lanes[kLanes];
  store(lanes, v);
  for (int64_t i = 0; i < count; ++i) p[i] = lanes[i];
}

// to[i, 0 .. width) = factor * from[i, 0 .. dim), zeros from dim to width = vectors(dim) * kLanes.
inline void pack_rows(const float* from, int64_t stride, int64_t rows, int64_t dim, float factor,
                      float* to) {
  for (int64_t i = 0; i < rows; ++i, from += stride)
    for (int64_t d = 0; d < dim; d += kLanes, to += kLanes)
      store(to, factor * load_some(from + d, dim - d));
}
// The way back: to[i, 0 .. dim) = factor * from[i, 0 .. dim), from being `width` wide.
inline void unpack_rows(const float* from, int64_t rows, int64_t dim, float factor, float* to,
                        int64_t stride) {
  for (int64_t i = 0; i < rows; ++i, to += stride)
    for (int64_t d = 0; d < dim; d += kLanes, from += kLanes)
      store_some(to + d, factor * load(from), dim - d);
}

// to(d, j) = from(j, d) in the panel form of GemmB with step = kPanel, panel = dim * kPanel; the
// columns of the last panel from `rows` on are zeros.
inline void pack_transposed(const float* from, int64_t stride, int64_t rows, int64_t dim,
                            float* to) {
  for (int64_t j0 = 0; j0 < rows; j0 += kPanel, to += dim * kPanel)
    for (int64_t j = j0; j < j0 + kPanel; j += kLanes)
      for (int64_t d = 0; d < dim; d += kLanes) {
        VecF block[kLanes];
        for (int i = 0; i < kLanes; ++i)
          block[i] = j + i < rows ? load_some(from + (j + i) * stride + d, dim - d) : VecF{};
        // Interleaving the two halves of the block rotates the bits of (row, column) by one place;
        // log2(kLanes) times exchanges row and column.
        for (int step = 1; step < kLanes; step *= 2) {
          VecF mixed[kLanes];
          for (int i = 0; i < kLanes / 2; ++i) {
            mixed[2 * i] = interleave_low(block[i], block[i + kLanes / 2]);
            mixed[2 * i + 1] = interleave_high(block[i], block[i + kLanes / 2]);
          }
          for (int i = 0; i < kLanes; ++i) block[i] = mixed[i];
        }
        for (int i = 0; i < kLanes && d + i < dim; ++i)
          store(to + (d + i) * kPanel + (j - j0), block[i]);
      }
}

}  // namespace scgraft::SCGRAFT_SIMD_LEVEL
