// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <gtest/gtest.h>

#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "io/h5ad.h"
#include "io/h5ad_rows.h"
#include "io/hdf5_out.h"
#include "runtime/error.h"
#include "tests/io/files.h"

namespace scgraft {

// A data frame without columns whose index is "<prefix>0", "<prefix>1", ...
inline hdf5::OutNode add_frame(hdf5::OutNode& parent, const std::string& name, int64_t rows,
                               const std::string& prefix) {
  hdf5::OutNode frame = parent.add_group(name, "dataframe", "0.2.0");
  frame.set_text("_index", "_index");
  frame.set_texts("column-order", {});
  std::vector<std::string> names;
  for (int64_t i = 0; i < rows; ++i) names.push_back(prefix + std::to_string(i));
  frame.add_strings("_index", names);
  return frame;
}

// Writes an AnnData file whose tables have no columns; `more` adds the rest.
inline std::string write_h5ad(const std::string& path, int64_t cells, int64_t genes,
                              const std::function<void(hdf5::OutNode&)>& more = {}) {
  hdf5::OutFile file(path, path);
  {
    hdf5::OutNode root = hdf5::OutNode::root(file);
    root.set_encoding("anndata", "0.1.0");
    add_frame(root, "obs", cells, "cell");
    add_frame(root, "var", genes, "gene");
    if (more) more(root);
  }
  file.close();
  return path;
}

// Sparse matrix group; format "csr_matrix" or "csc_matrix".
template <class Data, class Index, class Pointer>
hdf5::OutNode add_sparse(hdf5::OutNode& parent, const std::string& name, const std::string& format,
                         int64_t rows, int64_t columns, const std::vector<Data>& data,
                         const std::vector<Index>& indices, const std::vector<Pointer>& indptr) {
  hdf5::OutNode group = parent.add_group(name, format, "0.1.0");
  const int64_t shape[] = {rows, columns};
  group.set_integers("shape", shape);
  group.add_array("data", data);
  group.add_array("indices", indices);
  group.add_array("indptr", indptr);
  return group;
}

// The rows of a slot as a dense matrix, row-major, read in chunks of at most `chunk_rows`.
inline std::vector<float> dense(const H5ad& file, const std::string& slot,
                                RowReaderOptions options = {}) {
  RowReader reader(file, slot, options);
  std::vector<float> all;
  SparseRows rows;
  while (reader.next(rows)) {
    EXPECT_EQ(rows.first_row * reader.columns(), static_cast<int64_t>(all.size()));
    for (int64_t r = 0; r < rows.rows(); ++r) {
      std::vector<float> row(static_cast<size_t>(rows.columns), 0.f);
      for (size_t k = 0; k < rows.columns_of(r).size(); ++k)
        row[static_cast<size_t>(rows.columns_of(r)[k])] = rows.values_of(r)[k];
      all.insert(all.end(), row.begin(), row.end());
    }
  }
  return all;
}

// `call` throws a DataError with this code, whose text contains `part`.
inline void expect_data_error(const std::string& code, const std::string& part,
                              const std::function<void()>& call) {
  try {
    call();
    ADD_FAILURE() << "nothing was thrown, wanted " << code;
  } catch (const DataError& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    EXPECT_EQ(error.exit_code(), ExitCode::data);
  }
}

}  // namespace scgraft
