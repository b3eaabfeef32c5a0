// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string_view>

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

// Factor on the gradient of the loss. Small f16 gradients would become zero; multiplied by a power
// of two they do not, and too large a factor shows as a norm that is not finite. So the factor is
// halved until a step's gradient is finite, and doubled after two thousand steps that were.
// Source: dynamic loss scaling as in torch.amp.GradScaler.
class LossScale {
 public:
  // Constant 1 for every type but f16.
  explicit LossScale(DType activations) : dynamic_(activations == DType::f16) {
    if (dynamic_) value_ = 65536;
  }
  double value() const { return value_; }
  // After a gradient that is not finite: true when the step is worth another try with a smaller
  // factor.
  bool lower();
  // After a step with a finite gradient.
  void step_made();

 private:
  bool dynamic_;
  double value_ = 1;
  int good_ = 0;
};

}  // namespace scgraft
