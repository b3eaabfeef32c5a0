// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cmath>

#include "runtime/gpu/gpu.cuh"

// GELU of one element, for the kernels that end in it.
namespace scgraft::cuda {

// (1 + erf(x / sqrt(2))) / 2: the share of a standard normal distribution below x.
__device__ __forceinline__ float normal_below(float x) {
  return 0.5f * (1.0f + erff(0.707106781f * x));
}

__device__ __forceinline__ float gelu(float x) { return x * normal_below(x); }

__device__ __forceinline__ float gelu_slope(float x) {
  return normal_below(x) + x * (0.398942280f * expf(-0.5f * x * x));
}

}  // namespace scgraft::cuda
