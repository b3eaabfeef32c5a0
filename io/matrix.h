// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace scgraft {

// Consecutive rows (cells) of an expression matrix in compressed sparse form, whatever the file
// holds (csr, csc, dense, any number type). Columns ascend inside a row; values may be 0 only where
// the file stored an explicit zero.
struct SparseRows {
  int64_t first_row = 0;         // number of the first row in the matrix
  int64_t columns = 0;           // genes of the matrix
  std::vector<int64_t> offsets;  // [rows + 1], offsets[0] = 0
  std::vector<int32_t> column;   // [offsets.back()]
  std::vector<float> value;      // [offsets.back()]

  int64_t rows() const { return static_cast<int64_t>(offsets.size()) - 1; }
  std::span<const int32_t> columns_of(int64_t row) const {
    return {column.data() + offsets[static_cast<size_t>(row)], length_of(row)};
  }
  std::span<const float> values_of(int64_t row) const {
    return {value.data() + offsets[static_cast<size_t>(row)], length_of(row)};
  }

 private:
  size_t length_of(int64_t row) const {
    return static_cast<size_t>(offsets[static_cast<size_t>(row) + 1] -
                               offsets[static_cast<size_t>(row)]);
  }
};

}  // namespace scgraft
