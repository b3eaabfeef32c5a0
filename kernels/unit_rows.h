// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cmath>
#include <cstdint>

#include "kernels/ordered_sum.h"

// A row scaled to length 1, and the way back: what every operation on cosines shares.
namespace scgraft {

// unit = x / length with length = max(|x|, floor), which is returned. A row with a NaN stays NaN.
//   x, unit [dim]; unit may be x
template <class T>
T unit_row(const T* x, int64_t dim, double floor, T* unit) {
  // Not std::max(floor, ...): the comparison must let a NaN through.
  T length = std::sqrt(ordered_dot(x, x, dim));
  if (length < static_cast<T>(floor)) length = static_cast<T>(floor);
#pragma omp simd
  for (int64_t d = 0; d < dim; ++d) unit[d] = x[d] / length;
  return length;
}

// The share of a gradient by `unit` that lies along it and that scaling therefore takes away:
// dx = (dunit - unit * along) / length. At the floor the length is a constant, and nothing is lost.
template <class T>
T along_unit(const T* unit, const T* dunit, T length, double floor, int64_t dim) {
  return length > static_cast<T>(floor) ? ordered_dot(unit, dunit, dim) : T(0);
}

// dx += (dunit - unit * along) / length.
template <class T>
void add_unit_gradient(const T* unit, const T* dunit, T length, double floor, int64_t dim, T* dx) {
  const T along = along_unit(unit, dunit, length, floor, dim);
  for (int64_t d = 0; d < dim; ++d) dx[d] += (dunit[d] - unit[d] * along) / length;
}

}  // namespace scgraft
