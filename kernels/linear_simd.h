// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

namespace scgraft {

// Small products beside the large ones, on one thread, f32; all matrices row-major and dense.
struct LinearTiles {
  // u[r, j] = sum_k x[r, k] a[j, k];  x [rows, n], a [rank, n], u [rows, rank]
  void (*project)(const float* x, const float* a, float* u, int64_t rows, int64_t n, int64_t rank);
  // y[r, k] += scale * sum_j u[r, j] a[j, k];  u [rows, rank], a [rank, n], y [rows, n]
  void (*expand)(const float* u, const float* a, float scale, float* y, int64_t rows, int64_t n,
                 int64_t rank);
  // c[j, k] += scale * (sum_r g[r, j] x[r, k]) for columns begin <= k < end and j < rank;
  // g [rows, rank], x [rows, n], c [rank, n]. Rows are summed in order.
  void (*outer)(const float* g, const float* x, float scale, float* c, int64_t rows, int64_t n,
                int64_t rank, int64_t begin, int64_t end);
};

namespace v3 {
extern const LinearTiles linear_tiles;
}
namespace v4 {  // x86-64 only
extern const LinearTiles linear_tiles;
}

}  // namespace scgraft
