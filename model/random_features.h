// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <span>

#include "runtime/tensor_view.h"

namespace scgraft {

// Normal numbers that orthogonal_features() takes: a square for every block of head_dim rows, the
// last of which may be cut, and one matrix like the result.
int64_t feature_draws(int64_t features, int64_t head_dim);

// Random features of FAVOR+ attention whose rows are orthogonal within each block of head_dim:
//
//   Q_b R_b = block b           rows of block b of the result: those of Q_b^T
//   row j  *= |row j of the matrix behind the blocks|
//
// Q by Householder reflections as LAPACK has it, whose R may have a negative diagonal. Computes in
// f64.
//   draws   [feature_draws()]         the blocks, then the matrix
//   matrix  [features, head_dim]      overwritten
// Throws ShapeError.
// Source: gaussian_orthogonal_random_matrix() of the Performer in scBERT.
void orthogonal_features(std::span<const double> draws, int64_t features, int64_t head_dim,
                         std::span<double> matrix);

// The features of a layer in the n-th draw of a run, a function of all three numbers.
//   matrix  [features, head_dim]  f32 or f64 in host memory, overwritten
void draw_features(uint64_t seed, uint32_t draw, uint32_t layer, TensorView matrix);

}  // namespace scgraft
