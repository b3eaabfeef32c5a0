// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

namespace scgraft {

// Softmax of one f32 row of dim > 0 elements; y may be x.
using SoftmaxRow = void (*)(const float* x, float* y, int64_t dim);

namespace v3 {
extern const SoftmaxRow softmax_row;
}
namespace v4 {  // x86-64 only
extern const SoftmaxRow softmax_row;
}

SoftmaxRow softmax_of_this_cpu();  // in softmax.cc

}  // namespace scgraft
