// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "io/h5ad_frame.h"
#include "io/hdf5.h"

namespace scgraft {

enum class MatrixFormat { none, csr, csc, dense };
const char* name_of(MatrixFormat format);

// A place of the file that holds an expression matrix, cells in rows.
struct MatrixSlot {
  std::string name;                          // "X", "raw", or the name of a layer
  std::string path;                          // "X", "raw/X" or "raw.X", "layers/counts"
  MatrixFormat format = MatrixFormat::none;  // none: absent (X) or of a kind that is not read
  std::string dtype;                         // "float32", "int64", ...; of `none` what was found
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t stored = 0;  // values in the file: non-zeros of csr and csc, all of dense

  // Before anndata 0.7 raw was spread over the root of the file.
  bool is_raw() const { return path == "raw/X" || path == "raw.X"; }
};

// An .h5ad file (AnnData), opened for reading and never changed. Only shapes are read on opening;
// tables come column by column (Frame), matrices row by row (RowReader).
//
// Throws DataError (exit 10): E-NO-FILE, E-NOT-HDF5, E-HDF5-READ and the other codes of
// hdf5::Node, E-H5AD-MISSING, E-H5AD-LAYOUT.
// Source: on-disk format of anndata: encodings of versions 0.8 to 0.12, data frames of 0.7, and
// compound tables, h5sparse attributes and raw.X of the versions before.
class H5ad {
 public:
  static H5ad open(const std::string& path);

  const std::string& path() const { return root_.file(); }
  int64_t n_obs() const { return obs_.size(); }
  int64_t n_vars() const { return var_.size(); }

  // "X" first (always, perhaps with format none), then "raw" when there, then the layers.
  const std::vector<MatrixSlot>& slots() const { return slots_; }
  // By name or by path. E-NO-SLOT names the slots that exist.
  const MatrixSlot& slot(const std::string& name) const;

  const Frame& obs() const { return obs_; }
  const Frame& var() const { return var_; }
  bool has_raw() const { return raw_var_.has_value(); }
  // The genes of a slot's columns: raw has its own.
  const Frame& var_of(const MatrixSlot& slot) const;

  // Names only. What compound tables keep their categories in is none of the keys of uns.
  std::vector<std::string> obsm_keys() const;
  std::vector<std::string> uns_keys() const;

  // A dense obsm entry as [n_obs, dim], f32, row-major.
  struct Embedding {
    int64_t dim = 0;
    std::vector<float> values;
  };
  Embedding obsm(const std::string& key) const;

  const hdf5::Node& root() const { return root_; }

 private:
  H5ad(hdf5::Node root, Frame obs, Frame var);
  void add_slot(const std::string& name, const std::string& path, int64_t columns);
  std::vector<std::string> members(const char* group) const;

  hdf5::Node root_;
  Frame obs_;
  Frame var_;
  std::optional<Frame> raw_var_;
  std::vector<MatrixSlot> slots_;
};

}  // namespace scgraft
