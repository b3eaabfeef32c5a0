// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <vector>

#include "runtime/tensor.h"

namespace scgraft {

// What a classifier says about n cells.
struct ClassPrediction {
  std::vector<int32_t> label;  // [n]
  Tensor probabilities;        // [n, classes] f32, rows sum to 1
};

}  // namespace scgraft
