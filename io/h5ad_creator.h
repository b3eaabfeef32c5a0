// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "io/h5ad_frame.h"
#include "io/hdf5_out.h"
#include "io/matrix.h"
#include "io/output.h"

namespace scgraft {

// Consecutive rows of an obs or var table: their names and their columns, all of the same length.
struct Table {
  Strings index;
  std::vector<Column> columns;

  int64_t size() const { return static_cast<int64_t>(index.size()); }
};

struct H5adCreatorOptions {
  hdf5::Compression compression = {};  // of X
  // Row pointers are stored as int32 until the number of values passes this, then as int64.
  int64_t pointer_limit = INT32_MAX;
};

// Makes a new .h5ad file piece by piece, in memory of the size of a piece: X as csr_matrix of
// float32 with int32 columns, obs and var as data frames (dataframe 0.2.0). The pieces of obs, var
// and X may come in any interleaving; each in the order of its rows.
//
//   H5adCreator file("out.h5ad", Overwrite::refuse);
//   file.append_var(genes);
//   while (...) { file.append_rows(counts); file.append_obs(cells); }
//   file.commit();
//
// Columns: Categorical as categorical (codes of the smallest type that holds the categories of the
// first piece; all pieces have the same categories), Strings as string-array, Integers as int64,
// Reals as float64, Booleans as bool. Only a categorical may have missing values.
//
// Without commit() nothing appears under the final name. Throws ShapeError for pieces that do not
// fit each other, TypeError for missing values that have no place, StorageError, and ConfigError
// E-EXISTS.
class H5adCreator {
 public:
  H5adCreator(const std::string& path, Overwrite overwrite, H5adCreatorOptions options = {});
  ~H5adCreator();
  H5adCreator(H5adCreator&&) noexcept;

  void append_obs(const Table& cells);
  void append_var(const Table& genes);
  // rows.columns must be the same every time; rows.first_row is not looked at.
  void append_rows(const SparseRows& rows);

  // Checks that obs, var and X have the same sizes, closes the file and puts it in place.
  void commit();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace scgraft
