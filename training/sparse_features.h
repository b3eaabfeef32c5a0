// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "io/matrix.h"
#include "runtime/context.h"

namespace scgraft {

// What the values of an expression matrix are, which decides what becomes of them here.
enum class FeatureInput {
  counts,  // becomes log(1 + 10000 * count / total of the cell)
  log1p,   // kept as it is
};

// Expression of many cells in compressed sparse rows, cells in rows, genes in columns. Columns
// ascend inside a row. Any other sparse matrix fits as well.
struct SparseFeatures {
  int64_t columns = 0;
  std::vector<int64_t> offsets{0};  // [rows + 1]
  std::vector<int32_t> column;      // [offsets.back()]
  std::vector<float> value;         // [offsets.back()]

  int64_t rows() const { return static_cast<int64_t>(offsets.size()) - 1; }
  std::span<const int32_t> columns_of(int64_t row) const;
  std::span<const float> values_of(int64_t row) const;

  // Adds rows of a chunk of an expression matrix.
  //
  //   wanted     numbers of rows of the matrix, ascending; those outside this chunk are passed
  //              over, so that one list serves all chunks
  //   column_of  [rows.columns]  the column a gene of the chunk gets here, -1 to drop it; empty:
  //              its own. No two genes may share one. With it, `columns` is set beforehand.
  //
  // The total of a cell is over all genes of the chunk, dropped ones too. The first chunk sets
  // `columns` where it is 0.
  // Throws DataError for a value that is not finite (E-VALUES-NONFINITE) and for a negative count
  // (E-VALUES-NEGATIVE).
  void append(const SparseRows& rows, std::span<const int64_t> wanted, FeatureInput input,
              std::span<const int32_t> column_of = {});

  // A copy of some rows, in the order asked for.
  SparseFeatures selected(std::span<const int64_t> rows_wanted) const;
  // Rows become columns; they ascend again.
  SparseFeatures transposed() const;
};

// y[r, j] = sum over c of x[r, c] * dense[c, j], in f64 and in the order of the columns, so that a
// row of y is the same whichever rows stand beside it and however many threads there are.
//
//   dense  [x.columns, width]  f32 or f64
//   y      [x.rows(), width]   overwritten
template <class T>
void multiply(Context& ctx, const SparseFeatures& x, std::span<const T> dense, int64_t width,
              std::span<double> y);

}  // namespace scgraft
