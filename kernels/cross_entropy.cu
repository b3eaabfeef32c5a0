// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <limits>

#include "kernels/cross_entropy.h"
#include "kernels/require_tensor.h"
#include "kernels/rows.cuh"

namespace scgraft::cuda {
namespace {

template <class T>
struct Rows {
  const T* logits;
  const int32_t* labels;
  const float* weight;  // or null
  float* loss;
  T* dlogits;  // or null
  double scale;
  const double* factor;  // or null
  int64_t rows;
  int classes;
};

// A warp owns a row, a lane every 32nd class: three passes, of which the last two read from cache.
// Memory: reads logits and writes dlogits once; that bounds it. dlogits may be logits.
template <class T>
__global__ void __launch_bounds__(kRowThreads) cross_entropy_kernel(Rows<T> a) {
  const int64_t row = row_of_warp();
  if (row >= a.rows) return;
  const T* logits = a.logits + row * a.classes;
  T* dlogits = a.dlogits == nullptr ? nullptr : a.dlogits + row * a.classes;
  const int lane = gpu::lane();
  const int label = a.labels[row];
  if (label < 0 || label >= a.classes) {
    const float value = label < 0 ? 0.0f : std::numeric_limits<float>::quiet_NaN();
    if (lane == 0) a.loss[row] = value;
    for (int c = lane; dlogits != nullptr && c < a.classes; c += gpu::kWarp)
      dlogits[c] = gpu::from_f32<T>(value);
    return;
  }
  float largest = -std::numeric_limits<float>::infinity();
  for (int c = lane; c < a.classes; c += gpu::kWarp)
    largest = fmaxf(largest, gpu::to_f32(logits[c]));
  largest = gpu::warp_max(largest);
  const float at_label = gpu::to_f32(logits[label]) - largest;
  float sum = 0;
  for (int c = lane; c < a.classes; c += gpu::kWarp) sum += expf(gpu::to_f32(logits[c]) - largest);
  sum = gpu::warp_sum(sum);
  const float weight = a.weight == nullptr ? 1.0f : a.weight[label];
  if (lane == 0) a.loss[row] = weight * (logf(sum) - at_label);
  if (dlogits == nullptr) return;
  // Every lane has read the logit of the label before one of them overwrites it.
  gpu::sync_warp();
  const double scale = a.factor == nullptr ? a.scale : a.scale * *a.factor;
  const auto row_scale = static_cast<float>(scale * static_cast<double>(weight));
  const float inverse = 1.0f / sum;
  for (int c = lane; c < a.classes; c += gpu::kWarp) {
    const float p = expf(gpu::to_f32(logits[c]) - largest) * inverse;
    dlogits[c] = gpu::from_f32<T>(row_scale * (p - (c == label ? 1.0f : 0.0f)));
  }
}

}  // namespace

void cross_entropy(Context& ctx, ConstTensorView logits, ConstTensorView labels,
                   ConstTensorView weight, double scale, TensorView loss, TensorView dlogits,
                   ConstTensorView factor) {
  visit_storage(logits.dtype(), [&]<class T>(Type<T>) {
    const Rows<T> a{.logits = logits.as<T>(),
                    .labels = labels.as<int32_t>(),
                    .weight = data_or_null<float>(weight),
                    .loss = loss.as<float>(),
                    .dlogits = data_or_null<T>(dlogits),
                    .scale = scale,
                    .factor = data_or_null<double>(factor),
                    .rows = logits.dim(0),
                    .classes = static_cast<int>(logits.dim(1))};
    launch(ctx, "cross_entropy", cross_entropy_kernel<T>, row_grid(a.rows), kRowThreads, 0, a);
  });
}

}  // namespace scgraft::cuda
