// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "kernels/unit_rows.cuh"

// What operations on the cosines of all pairs of cells share.
namespace scgraft::cuda {

// A block owns a cell.
inline constexpr int kPairThreads = 256;
inline constexpr int kPairWarps = kPairThreads / gpu::kWarp;

// dx[i] += through the norm of row i: sum over j of w(i, j) * other[j], j in order, where w(i, j)
// is weights[i, j], or weights[j, i] when kTransposed. A thread owns columns; sums [n, dim] is
// scratch. Memory: reads `other` once per row, from cache; bounded by that, for the few rows of a
// batch.
template <class T, bool kTransposed>
__global__ void __launch_bounds__(kPairThreads)
    add_pair_gradient_kernel(const float* unit, const float* norm, const float* other,
                             const float* weights, int64_t n, int dim, float floor, float* sums,
                             T* dx) {
  gpu::SharedCarver carver(gpu::shared_memory());
  float* shared = carver.take<float>(kPairWarps);
  const int64_t row = blockIdx.x;
  const auto thread = static_cast<int>(threadIdx.x);
  unit += row * dim, sums += row * dim, dx += row * dim;
  float along = 0;
  for (int d = thread; d < dim; d += kPairThreads) {
    float sum = 0;
    for (int64_t j = 0; j < n; ++j)
      sum += weights[kTransposed ? j * n + row : row * n + j] * other[j * dim + d];
    sums[d] = sum;
    along += unit[d] * sum;
  }
  // At the floor the length is a constant, and nothing is projected out.
  along = block_sum(along, shared);
  const float length = norm[row];
  if (!(length > floor)) along = 0;
  for (int d = thread; d < dim; d += kPairThreads)
    dx[d] = gpu::from_f32<T>(gpu::to_f32(dx[d]) + (sums[d] - unit[d] * along) / length);
}

// out[0] = sum of values [n] * factor, by one warp; 0 when n is 0.
template <class T>
__global__ void __launch_bounds__(gpu::kWarp)
    total_kernel(const T* values, int64_t n, T factor, T* out) {
  T sum = 0;
  for (int64_t i = gpu::lane(); i < n; i += gpu::kWarp) sum += values[i];
  sum = gpu::warp_sum(sum);
  if (gpu::lane() == 0) out[0] = n > 0 ? sum * factor : T(0);
}

// Dynamic shared memory of a kernel whose only array is one float per warp of kPairThreads.
inline int64_t pair_shared_bytes() {
  gpu::SharedCarver carver(nullptr);
  carver.take<float>(kPairWarps);
  return carver.used();
}

}  // namespace scgraft::cuda
