// SPDX-License-Identifier: Apache-2.0
#include "kernels/softmax_simd.h"

#include "kernels/simd.h"

namespace scgraft::SCGRAFT_SIMD_LEVEL {
namespace {

constexpr float kLog2E = 1.44269504088896341f;
constexpr float kNothing = -__builtin_inff();  // what its exponential adds to a sum is 0

// Elements [i, i + kLanes) of a row; behind its end kNothing.
VecF row_piece(const float* x, int64_t i, int64_t dim) {
  if (i + kLanes <= dim) return load(x + i);
  float padded[kLanes];
  for (float& v : padded) v = kNothing;
  __builtin_memcpy(padded, x + i, static_cast<size_t>(dim - i) * sizeof(float));
  return load(padded);
}

void store_piece(float* y, int64_t i, int64_t dim, VecF v) {
  if (i + kLanes <= dim) return store(y + i, v);
  __builtin_memcpy(y + i, &v, static_cast<size_t>(dim - i) * sizeof(float));
}

void row(const float* x, float* y, int64_t dim) {
  VecF largest = splat(kNothing);
  for (int64_t i = 0; i < dim; i += kLanes) largest = vmax(largest, row_piece(x, i, dim));
  const float shift = max_of(largest);
  VecF sums = splat(0.0f);
  for (int64_t i = 0; i < dim; i += kLanes) {
    const VecF e = exp2_nonpositive(kLog2E * (row_piece(x, i, dim) - shift));
    store_piece(y, i, dim, e);
    sums += e;
  }
  const float sum = sum_of(sums);
  for (int64_t i = 0; i < dim; i += kLanes) store_piece(y, i, dim, row_piece(y, i, dim) / sum);
}

}  // namespace

extern const SoftmaxRow softmax_row;
const SoftmaxRow softmax_row = row;

}  // namespace scgraft::SCGRAFT_SIMD_LEVEL
