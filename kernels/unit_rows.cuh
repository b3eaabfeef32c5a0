// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cmath>

#include "kernels/rows.cuh"

// kernels/unit_rows.h for kernels: a warp scales a row to length 1.
namespace scgraft::cuda {

// a . b over dim features, the same bits in all lanes. a . b and b . a are the same bits too.
template <bool kVectors, class A, class B>
__device__ __forceinline__ float warp_dot(const A* a, const B* b, int dim) {
  float sum = 0;
  for (int first = gpu::lane() * kPiece; first < dim; first += kWarpPieces) {
    float left[kPiece], right[kPiece];
    load_piece<kVectors>(a, first, dim, left);
    load_piece<kVectors>(b, first, dim, right);
    UNROLL
    for (int i = 0; i < kPiece; ++i) sum += left[i] * right[i];
  }
  return gpu::warp_sum(sum);
}

// unit = x / length with length = max(|x|, floor), which is returned. A row with a NaN stays NaN.
// unit may be x: a lane reads its pieces before it writes them.
template <bool kVectors, class T, class U>
__device__ __forceinline__ float unit_row(const T* x, int dim, float floor, U* unit) {
  float length = sqrtf(warp_dot<kVectors>(x, x, dim));
  // Not fmaxf: the comparison must let a NaN through.
  if (length < floor) length = floor;
  for (int first = gpu::lane() * kPiece; first < dim; first += kWarpPieces) {
    float v[kPiece];
    load_piece<kVectors>(x, first, dim, v);
    UNROLL
    for (int i = 0; i < kPiece; ++i) v[i] /= length;
    store_piece<kVectors>(unit, first, dim, v);
  }
  return length;
}

// A warp owns a row. Memory: reads x once (again from cache), writes unit; that bounds it.
template <class T, class U, bool kVectors>
__global__ void __launch_bounds__(kRowThreads)
    unit_rows_kernel(const T* x, int64_t rows, int dim, float floor, U* unit, float* norm) {
  const int64_t row = row_of_warp();
  if (row >= rows) return;
  const float length = unit_row<kVectors>(x + row * dim, dim, floor, unit + row * dim);
  if (norm != nullptr && gpu::lane() == 0) norm[row] = length;
}

}  // namespace scgraft::cuda
