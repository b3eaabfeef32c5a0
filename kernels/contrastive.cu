// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <limits>

#include "kernels/contrastive.h"
#include "kernels/pair_rows.cuh"
#include "kernels/require_tensor.h"

namespace scgraft::cuda {
namespace {

constexpr float kFloor = 1e-8f;

// Row i of the scores, its share of the loss, and in place of the scores the gradient by its
// cosines. A block owns the row, a warp every eighth column.
// Memory: reads unit2 once per row, from cache; bounded by that, for the few rows of a batch.
template <bool kVectors>
__global__ void __launch_bounds__(kPairThreads)
    contrastive_scores_kernel(const float* unit1, const float* unit2, int64_t n, int dim,
                              float temperature, float scale, float* weights, float* row_loss) {
  gpu::SharedCarver carver(gpu::shared_memory());
  float* shared = carver.take<float>(kPairWarps);
  const int64_t row = blockIdx.x;
  float* s = weights + row * n;
  for (int64_t j = gpu::warp(); j < n; j += kPairWarps) {
    const float cosine = warp_dot<kVectors>(unit1 + row * dim, unit2 + j * dim, dim);
    if (gpu::lane() == 0) s[j] = cosine / temperature;
  }
  gpu::sync_block();
  const int64_t begin = threadIdx.x;
  float largest = -std::numeric_limits<float>::infinity();
  for (int64_t j = begin; j < n; j += kPairThreads) largest = fmaxf(largest, s[j]);
  largest = block_max(largest, shared);
  const float own = s[row];
  float sum = 0;
  for (int64_t j = begin; j < n; j += kPairThreads) sum += expf(s[j] - largest);
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) row_loss[row] = largest + logf(sum) - own;
  // block_sum() has brought all threads here, so `own` was read everywhere.
  for (int64_t j = begin; j < n; j += kPairThreads)
    s[j] = scale * (expf(s[j] - largest) / sum - (row == j ? 1.0f : 0.0f)) /
           (static_cast<float>(n) * temperature);
}

}  // namespace

void contrastive(Context& ctx, ConstTensorView x1, ConstTensorView x2, double temperature,
                 double scale, TensorView loss, TensorView dx1, TensorView dx2) {
  constexpr const char* kOp = "contrastive";
  const int64_t n = x1.dim(0);
  const int64_t dim = x1.dim(1);
  const auto width = static_cast<int>(dim);
  Arena::Scope scratch(ctx.scratch());
  const auto floats = [&](Shape shape) { return scratch.take(shape, DType::f32).as<float>(); };
  float *unit1 = floats({n, dim}), *unit2 = floats({n, dim}), *sums = floats({n, dim});
  float *norm1 = floats({n}), *norm2 = floats({n}), *row_loss = floats({n});
  float* weights = floats({n, n});
  visit_storage(x1.dtype(), [&]<class T>(Type<T>) {
    const bool vectors = rows_fit_vectors(dim, x1.as<T>(), x2.as<T>(), unit1, unit2);
    const auto unit =
        vectors ? unit_rows_kernel<T, float, true> : unit_rows_kernel<T, float, false>;
    launch(ctx, kOp, unit, row_grid(n), kRowThreads, 0, x1.as<T>(), n, width, kFloor, unit1, norm1);
    launch(ctx, kOp, unit, row_grid(n), kRowThreads, 0, x2.as<T>(), n, width, kFloor, unit2, norm2);
    launch(ctx, kOp, vectors ? contrastive_scores_kernel<true> : contrastive_scores_kernel<false>,
           {.x = n}, kPairThreads, pair_shared_bytes(), unit1, unit2, n, width,
           static_cast<float>(temperature), static_cast<float>(scale), weights, row_loss);
    launch(ctx, kOp, total_kernel<float>, {}, gpu::kWarp, 0, row_loss, n,
           1.0f / static_cast<float>(n), loss.as<float>());
    // One after the other: both may be the same tensor.
    if (!dx1.empty())
      launch(ctx, kOp, add_pair_gradient_kernel<T, false>, {.x = n}, kPairThreads,
             pair_shared_bytes(), unit1, norm1, unit2, weights, n, width, kFloor, sums,
             dx1.as<T>());
    if (!dx2.empty())
      launch(ctx, kOp, add_pair_gradient_kernel<T, true>, {.x = n}, kPairThreads,
             pair_shared_bytes(), unit2, norm2, unit1, weights, n, width, kFloor, sums,
             dx2.as<T>());
  });
}

}  // namespace scgraft::cuda
