// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <span>
#include <string>

#include "io/matrix.h"
#include "runtime/context.h"

namespace scgraft {

// Expression of one cell, normalised and logged in place:
//   value[i] = log1p(value[i] / (total / target_sum))
// with the sum in f64 and the rest in f32, as scanpy's normalize_total and log1p compute on f32
// data. A cell whose total is 0 is left as it is.
//   total  the sum of the cell's values (over whichever genes count)
void normalise_log1p(std::span<float> values, double total, double target_sum);

// The sum of a cell's values, in order, in f64.
double total_of(std::span<const float> values);

// normalise_log1p() of every row by its own total.
void normalise_log1p(Context& ctx, SparseRows& rows, double target_sum);

// Leaves rows of counts log1p-normalised over all columns (totals of 1e4) in `out`: what
// CellReader::next() gives baselines. `rows` then holds what `out` held.
void take_normalised(Context& ctx, SparseRows& rows, SparseRows& out);

// Throws DataError unless every value is finite (E-VALUES-NONFINITE) and not negative
// (E-VALUES-NEGATIVE), naming the first cell and column that is.
void require_expression(const SparseRows& rows, const std::string& file, const std::string& slot);

}  // namespace scgraft
