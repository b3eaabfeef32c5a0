// SPDX-License-Identifier: Apache-2.0
#include "kernels/ecs.h"
#include "kernels/pair_rows.cuh"
#include "kernels/require_tensor.h"

namespace scgraft::cuda {
namespace {

constexpr float kFloor = 1e-12f;

// Row i of the cosine matrix, its share of the loss, and in place of the cosines the gradient by
// them. A block owns the row, a warp every eighth column; both halves of the matrix are computed,
// so that a row owns its results. Memory: reads `unit` once per row, from cache; bounded by that,
// for the few rows of a batch.
template <bool kVectors>
__global__ void __launch_bounds__(kPairThreads)
    ecs_scores_kernel(const float* unit, int64_t n, int dim, float threshold, float factor,
                      float* weights, float* row_loss) {
  gpu::SharedCarver carver(gpu::shared_memory());
  float* shared = carver.take<float>(kPairWarps);
  const int64_t row = blockIdx.x;
  float* w = weights + row * n;
  for (int64_t j = gpu::warp(); j < n; j += kPairWarps) {
    const float cosine =
        j == row ? 0.0f : warp_dot<kVectors>(unit + row * dim, unit + j * dim, dim);
    if (gpu::lane() == 0) w[j] = cosine;
  }
  gpu::sync_block();
  float sum = 0;
  for (int64_t j = threadIdx.x; j < n; j += kPairThreads) {
    const float cosine = w[j];
    const float excess = (cosine < 0 ? 0.0f : cosine) - threshold;
    sum += 1.0f - excess * excess;
    w[j] = cosine <= 0 ? 0.0f : factor * excess;
  }
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) row_loss[row] = sum;
}

}  // namespace

void ecs(Context& ctx, ConstTensorView x, double threshold, double scale, TensorView loss,
         TensorView dx) {
  constexpr const char* kOp = "ecs";
  const int64_t n = x.dim(0);
  const int64_t dim = x.dim(1);
  const auto width = static_cast<int>(dim);
  const double pairs = static_cast<double>(n) * static_cast<double>(n);
  Arena::Scope scratch(ctx.scratch());
  const auto floats = [&](Shape shape) { return scratch.take(shape, DType::f32).as<float>(); };
  float *unit = floats({n, dim}), *sums = floats({n, dim}), *weights = floats({n, n});
  float *norm = floats({n}), *row_loss = floats({n});
  visit_storage(x.dtype(), [&]<class T>(Type<T>) {
    const bool vectors = rows_fit_vectors(dim, x.as<T>(), unit);
    launch(ctx, kOp, vectors ? unit_rows_kernel<T, float, true> : unit_rows_kernel<T, float, false>,
           row_grid(n), kRowThreads, 0, x.as<T>(), n, width, kFloor, unit, norm);
    // Each pair stands in the mean twice.
    launch(ctx, kOp, vectors ? ecs_scores_kernel<true> : ecs_scores_kernel<false>, {.x = n},
           kPairThreads, pair_shared_bytes(), unit, n, width, static_cast<float>(threshold),
           static_cast<float>(-4 * scale / pairs), weights, row_loss);
    launch(ctx, kOp, total_kernel<float>, {}, gpu::kWarp, 0, row_loss, n,
           static_cast<float>(1 / pairs), loss.as<float>());
    if (!dx.empty())
      launch(ctx, kOp, add_pair_gradient_kernel<T, false>, {.x = n}, kPairThreads,
             pair_shared_bytes(), unit, norm, unit, weights, n, width, kFloor, sums, dx.as<T>());
  });
}

}  // namespace scgraft::cuda
