// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cmath>
#include <cstdint>

#include "runtime/dtype.h"

namespace scgraft {

// |got - want| <= atol + rtol * |want|. All tolerances of the tests come from here; a test that
// needs more says why beside its own number. u is the unit roundoff of the storage type.
struct Tolerance {
  double rtol = 0;
  double atol_of_largest = 0;  // atol = this times the largest |want|
};

// k: length of the sum behind one result.
inline Tolerance tolerance(DType storage, int64_t k) {
  const double root = std::sqrt(static_cast<double>(k > 0 ? k : 1));
  constexpr double kF32 = 6.0e-8;
  constexpr double kF16 = 4.9e-4;
  constexpr double kBf16 = 3.9e-3;
  switch (storage) {
    case DType::f64:
      return {8 * 1.1e-16 * root, 8 * 1.1e-16 * root};
    case DType::f16:
      return {2 * kF16 + 8 * kF32 * root, 2 * kF16 + 8 * kF32 * root};
    case DType::bf16:
      return {2 * kBf16 + 8 * kF32 * root, 2 * kBf16 + 8 * kF32 * root};
    default:
      return {8 * kF32 * root, 8 * kF32 * root};
  }
}

// Central differences in f64: step 1e-5, compared at 1e-6 of the largest gradient.
inline constexpr double kDifferenceStep = 1e-5;
inline constexpr double kDifferenceTolerance = 1e-6;

// Golden cases of the original code (f32): activations, and gradients relative to their largest.
inline constexpr double kGoldenActivation = 5e-6;
inline constexpr double kGoldenGradient = 2e-5;
inline constexpr double kGoldenGradientFloor = 1e-7;

}  // namespace scgraft
