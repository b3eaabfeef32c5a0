// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string_view>

#include "kernels/update_state.h"
#include "runtime/device.h"
#include "runtime/dtype.h"

namespace scgraft {

// The type that --precision stands for on a device. Products with frozen weights use it, and on a
// CUDA device activations and their gradients are stored in it; parameters that are trained, sums,
// norms and losses stay f32.
//
//   auto  f32 on the CPU; bf16 on CUDA devices from compute capability 8.0 on, f16 on older ones
//   fp32, bf16, fp16
//
// Throws ConfigError (E-PRECISION) for other words, fp16 on the CPU, and bf16 on a CUDA device
// before 8.0, which has no instructions for it.
DType product_dtype(std::string_view precision, Device device);

// The factor on the gradient of the loss that a run begins with, and how it changes: for f16 65536,
// halved and doubled as the rule says, for every other type 1 for good.
struct LossScale {
  explicit LossScale(DType activations)
      : initial(activations == DType::f16 ? 65536 : 1),
        rule{.dynamic = activations == DType::f16} {}

  double initial;
  ScaleRule rule;
};

}  // namespace scgraft
