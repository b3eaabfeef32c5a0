// SPDX-License-Identifier: Apache-2.0
#include "kernels/linear_simd.h"

#include "kernels/simd.h"

namespace scgraft::SCGRAFT_SIMD_LEVEL {
namespace {

// R rows against J columns, vectors along n. One pass over x and a.
template <int R, int J>
void project_block(const float* x, const float* a, float* u, int64_t n, int64_t rank) {
  VecF sum[R][J] = {};
  int64_t k = 0;
  for (; k + kLanes <= n; k += kLanes) {
    VecF w[J];
    for (int j = 0; j < J; ++j) w[j] = load(a + j * n + k);
    for (int r = 0; r < R; ++r) {
      const VecF v = load(x + r * n + k);
      for (int j = 0; j < J; ++j) sum[r][j] += v * w[j];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < J; ++j) {
      float total = sum_of(sum[r][j]);
      for (int64_t i = k; i < n; ++i) total += x[r * n + i] * a[j * n + i];
      u[r * rank + j] = total;
    }
}

void project(const float* x, const float* a, float* u, int64_t rows, int64_t n, int64_t rank) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    int64_t j = 0;
    for (; j + 4 <= rank; j += 4)
      project_block<4, 4>(x + r * n, a + j * n, u + r * rank + j, n, rank);
    for (; j < rank; ++j) project_block<4, 1>(x + r * n, a + j * n, u + r * rank + j, n, rank);
  }
  for (; r < rows; ++r) {
    int64_t j = 0;
    for (; j + 4 <= rank; j += 4)
      project_block<1, 4>(x + r * n, a + j * n, u + r * rank + j, n, rank);
    for (; j < rank; ++j) project_block<1, 1>(x + r * n, a + j * n, u + r * rank + j, n, rank);
  }
}

template <int R, int V>
void expand_block(const float* u, const float* a, float scale, float* y, int64_t n, int64_t rank) {
  VecF sum[R][V] = {};
  for (int64_t j = 0; j < rank; ++j)
    for (int v = 0; v < V; ++v) {
      const VecF w = load(a + j * n + v * kLanes);
      for (int r = 0; r < R; ++r) sum[r][v] += u[r * rank + j] * w;
    }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) {
      float* out = y + r * n + v * kLanes;
      store(out, load(out) + scale * sum[r][v]);
    }
}

template <int R>
void expand_rows(const float* u, const float* a, float scale, float* y, int64_t n, int64_t rank) {
  int64_t k = 0;
  for (; k + 2 * kLanes <= n; k += 2 * kLanes) expand_block<R, 2>(u, a + k, scale, y + k, n, rank);
  for (; k + kLanes <= n; k += kLanes) expand_block<R, 1>(u, a + k, scale, y + k, n, rank);
  for (; k < n; ++k)
    for (int r = 0; r < R; ++r) {
      float sum = 0;
      for (int64_t j = 0; j < rank; ++j) sum += u[r * rank + j] * a[j * n + k];
      y[r * n + k] += scale * sum;
    }
}

void expand(const float* u, const float* a, float scale, float* y, int64_t rows, int64_t n,
            int64_t rank) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) expand_rows<4>(u + r * rank, a, scale, y + r * n, n, rank);
  for (; r < rows; ++r) expand_rows<1>(u + r * rank, a, scale, y + r * n, n, rank);
}

template <int J, int V>
void outer_block(const float* g, const float* x, float scale, float* c, int64_t rows, int64_t n,
                 int64_t rank) {
  VecF sum[J][V] = {};
  for (int64_t r = 0; r < rows; ++r) {
    VecF v[V];
    for (int i = 0; i < V; ++i) {
      v[i] = load(x + r * n + i * kLanes);
      __builtin_prefetch(x + (r + 16) * n + i * kLanes);  // does not fault behind the last row
    }
    for (int j = 0; j < J; ++j) {
      const float w = g[r * rank + j];
      for (int i = 0; i < V; ++i) sum[j][i] += w * v[i];
    }
  }
  for (int j = 0; j < J; ++j)
    for (int i = 0; i < V; ++i) {
      float* out = c + j * n + i * kLanes;
      store(out, load(out) + scale * sum[j][i]);
    }
}

void outer_column(const float* g, const float* x, float scale, float* c, int64_t rows, int64_t n,
                  int64_t rank) {
  for (int64_t j = 0; j < rank; ++j) {
    float sum = 0;
    for (int64_t r = 0; r < rows; ++r) sum += g[r * rank + j] * x[r * n];
    c[j * n] += scale * sum;
  }
}

// Columns of kVecs vectors, all ranks: in blocks of eight where the registers hold their sums.
template <int kVecs>
void outer_columns(const float* g, const float* x, float scale, float* c, int64_t rows, int64_t n,
                   int64_t rank) {
  int64_t j = 0;
#if defined(__AVX512F__)
  for (; j + 8 <= rank; j += 8) outer_block<8, kVecs>(g + j, x, scale, c + j * n, rows, n, rank);
#endif
  for (; j + 4 <= rank; j += 4) outer_block<4, kVecs>(g + j, x, scale, c + j * n, rows, n, rank);
  for (; j < rank; ++j) outer_block<1, kVecs>(g + j, x, scale, c + j * n, rows, n, rank);
}

void outer(const float* g, const float* x, float scale, float* c, int64_t rows, int64_t n,
           int64_t rank, int64_t begin, int64_t end) {
  constexpr int kVecs = 2;
  int64_t k = begin;
  for (; k + kVecs * kLanes <= end; k += kVecs * kLanes)
    outer_columns<kVecs>(g, x + k, scale, c + k, rows, n, rank);
  for (; k + kLanes <= end; k += kLanes) outer_columns<1>(g, x + k, scale, c + k, rows, n, rank);
  for (; k < end; ++k) outer_column(g, x + k, scale, c + k, rows, n, rank);
}

}  // namespace

extern const LinearTiles linear_tiles;
const LinearTiles linear_tiles = {project, expand, outer};

}  // namespace scgraft::SCGRAFT_SIMD_LEVEL
