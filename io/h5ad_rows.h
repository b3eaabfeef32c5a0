// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <memory>
#include <string>

#include "io/h5ad.h"
#include "io/matrix.h"

namespace scgraft {

struct RowReaderOptions {
  // Memory of one chunk that next() returns; also of the working blocks of dense and csc matrices.
  int64_t chunk_bytes = int64_t{64} << 20;
  int64_t chunk_rows = 1 << 16;
};

// Reads an expression matrix of an .h5ad file in consecutive rows (cells), values as f32, in memory
// of the size of a chunk, whatever the storage:
//   csr    reads just the rows asked for
//   dense  reads blocks of rows and drops zeros
//   csc    scans all columns once for as many rows as fit in chunk_bytes * 4, and keeps those rows;
//          reading in ascending order is slower than csr, jumping around much slower. Holds 8 bytes
//          per cell of the file besides.
// Columns come out ascending; repeated entries of a row are summed in f64, in the order of the
// file.
//
//   RowReader reader(file, "X");
//   for (SparseRows rows; reader.next(rows);) use(rows);
//
// Throws DataError: E-NO-SLOT, E-H5AD-MISSING (the slot holds no matrix), E-H5AD-INDPTR and
// E-H5AD-INDEX (both name the row, or the column of csc), E-SIZE, E-HDF5-READ.
class RowReader {
 public:
  RowReader(const H5ad& file, const std::string& slot, RowReaderOptions options = {});
  ~RowReader();
  RowReader(RowReader&&) noexcept;

  const MatrixSlot& slot() const { return slot_; }
  int64_t rows() const { return slot_.rows; }
  int64_t columns() const { return slot_.columns; }

  // Overwrites `out` with rows [first, first + count). `count` rows must fit in memory: a request
  // above the host budget (io/limits.h) throws E-SIZE.
  void read(int64_t first, int64_t count, SparseRows& out);

  // Overwrites `out` with the next rows, at least one; false at the end.
  bool next(SparseRows& out);
  void rewind() { next_row_ = 0; }

  class Source;  // one per storage format

 private:
  MatrixSlot slot_;
  RowReaderOptions options_;
  std::unique_ptr<Source> source_;
  int64_t next_row_ = 0;
};

}  // namespace scgraft
