// SPDX-License-Identifier: Apache-2.0
#include "kernels/masked_mse.h"
#include "kernels/require_tensor.h"
#include "kernels/rows.cuh"

namespace scgraft::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / gpu::kWarp;

// A block owns a cell, a thread every 256th of its tokens, so the order of the sum depends on the
// cell alone. x is read before dx is written: dx may be x.
// Memory: reads x, target and mask, writes dx once: little, the launch bounds it.
template <class T>
__global__ void __launch_bounds__(kThreads)
    masked_mse_kernel(const T* x, const float* target, const uint8_t* mask, PackedRows packing,
                      double slope, const double* factor, float* loss, T* dx) {
  gpu::SharedCarver carver(gpu::shared_memory());
  float* shared = carver.take<float>(kWarps);
  const int64_t cell = blockIdx.x;
  const int64_t end = packing.offsets[cell + 1];
  const auto scaled = static_cast<float>(factor == nullptr ? slope : slope * *factor);
  float sum = 0;
  for (int64_t t = packing.offsets[cell] + threadIdx.x; t < end; t += kThreads) {
    // A token that does not count is selected away, not multiplied away: it may hold a NaN.
    const float error = mask[t] != 0 ? gpu::to_f32(x[t]) - target[t] : 0.0f;
    sum += error * error;
    if (dx != nullptr) dx[t] = gpu::from_f32<T>(scaled * error);
  }
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) loss[cell] = sum;
}

}  // namespace

void masked_mse(Context& ctx, ConstTensorView x, ConstTensorView target, ConstTensorView mask,
                const Packing& packing, double scale, TensorView loss, TensorView dx,
                ConstTensorView factor) {
  constexpr const char* kOp = "masked_mse";
  const PackedRows cells = packed_rows(kOp, ctx, packing);
  gpu::SharedCarver carver(nullptr);
  carver.take<float>(kWarps);
  visit_storage(x.dtype(), [&]<class T>(Type<T>) {
    launch(ctx, kOp, masked_mse_kernel<T>, {.x = cells.cells}, kThreads, carver.used(), x.as<T>(),
           target.as<float>(), mask.as<uint8_t>(), cells, 2 * scale, data_or_null<double>(factor),
           loss.as<float>(), data_or_null<T>(dx));
  });
}

}  // namespace scgraft::cuda
