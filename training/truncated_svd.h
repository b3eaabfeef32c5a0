// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <vector>

#include "runtime/context.h"
#include "runtime/tensor.h"
#include "training/sparse_features.h"

namespace scgraft {

// The directions along which a sparse matrix is largest: X ~ U S V^T, the mean not taken off.
struct TruncatedSvd {
  Tensor components;                    // V [columns, components] f32
  std::vector<double> singular_values;  // [components], descending; empty when loaded

  int64_t columns() const { return components.dim(0); }
  // X V, [rows, components] f32.
  Tensor project(Context& ctx, const SparseFeatures& x) const;
};

// Singular vectors of the largest singular values, by random projection and five power
// iterations. Exact up to rounding when the matrix has at most components + 10 rows or columns.
// Gives at most min(rows, columns) components. The largest element of a component is positive.
// A pure function of (x, components, seed), whatever the number of threads.
//
//   components  above 0, else ConfigError
//
// Throws DataError("E-BASELINE") for a matrix without rows or columns.
// Source: Halko, Martinsson, Tropp, Finding structure with randomness (2011), algorithms 4.4, 5.1.
TruncatedSvd fit_truncated_svd(Context& ctx, const SparseFeatures& x, int64_t components,
                               uint64_t seed);

}  // namespace scgraft
