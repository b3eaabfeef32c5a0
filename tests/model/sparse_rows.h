// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <vector>

#include "io/matrix.h"

namespace scgraft {

// The rows of a dense matrix [rows, columns], row-major, without its zeros.
inline SparseRows sparse_rows(int64_t columns, const std::vector<float>& dense,
                              int64_t first_row = 0) {
  SparseRows rows;
  rows.first_row = first_row;
  rows.columns = columns;
  rows.offsets = {0};
  for (size_t i = 0; i < dense.size(); ++i) {
    const auto column = static_cast<int64_t>(i) % columns;
    if (dense[i] != 0) {
      rows.column.push_back(static_cast<int32_t>(column));
      rows.value.push_back(dense[i]);
    }
    if (column + 1 == columns) rows.offsets.push_back(static_cast<int64_t>(rows.column.size()));
  }
  return rows;
}

// Rows [begin, end) of `rows`, as another chunk of the same file.
inline SparseRows rows_between(const SparseRows& rows, int64_t begin, int64_t end) {
  SparseRows part;
  part.first_row = rows.first_row + begin;
  part.columns = rows.columns;
  part.offsets = {0};
  for (int64_t row = begin; row < end; ++row) {
    const auto columns = rows.columns_of(row);
    const auto values = rows.values_of(row);
    part.column.insert(part.column.end(), columns.begin(), columns.end());
    part.value.insert(part.value.end(), values.begin(), values.end());
    part.offsets.push_back(static_cast<int64_t>(part.column.size()));
  }
  return part;
}

}  // namespace scgraft
