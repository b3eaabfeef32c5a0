// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "io/h5ad_frame.h"
#include "io/output.h"

namespace scgraft {

struct H5adWriterOptions {
  // The output may be the input: it is replaced once the new file is complete.
  bool in_place = false;
  // An element that is there already under the name of a new one is replaced.
  bool overwrite_slots = false;
};

// Copies an .h5ad file and adds to the copy. Everything that is not added to is copied as it is
// stored, object by object: X, raw, layers, other columns, unknown elements, their chunks and
// filters. New elements are in the encodings that anndata 0.8 and later read.
//
//   H5adWriter out("cells.h5ad", "annotated.h5ad", Overwrite::refuse);
//   out.add_categorical("scgraft", codes, categories);
//   out.add_obsm("X_scgraft", dim, embedding);
//   out.commit();
//
// Nothing appears under the output's name before commit(); any exception leaves the old file or
// none. Every add_... throws
//   ConfigError  E-SLOT-EXISTS (see overwrite_slots), E-SLOT-NAME (empty, with "/", or the name
//                of the index)
//   ShapeError   when the values do not fit the cells of the file
//   StorageError when the disk fails
// The constructor throws DataError for an input that H5ad::open refuses, E-HDF5-READ and
// E-HDF5-LINK for objects that cannot be copied, and ConfigError E-IN-PLACE or E-EXISTS.
class H5adWriter {
 public:
  H5adWriter(const std::string& input, const std::string& output, Overwrite overwrite,
             H5adWriterOptions options = {});
  ~H5adWriter();
  H5adWriter(H5adWriter&&) noexcept;

  int64_t n_obs() const;
  int64_t n_vars() const;
  bool has_obs(const std::string& column) const;
  bool has_obsm(const std::string& key) const;
  bool has_uns(const std::string& key) const;

  // Columns of obs, one value per cell; they come after the columns that are there.
  // codes: index into categories, -1 where there is none. Categories must differ.
  void add_categorical(const std::string& column, std::span<const int32_t> codes,
                       const std::vector<std::string>& categories);
  void add_categorical(const std::string& column, const Categorical& values);
  void add_real(const std::string& column, std::span<const float> values);
  void add_integer(const std::string& column, std::span<const int64_t> values);
  void add_strings(const std::string& column, std::span<const std::string> values);
  void add_booleans(const std::string& column, std::span<const uint8_t> values);
  // A column of var, one value (0 or 1) per gene.
  void add_var_booleans(const std::string& column, std::span<const uint8_t> values);

  // obsm[key], [n_obs, dim] row-major, f32.
  void add_obsm(const std::string& key, int64_t dim, std::span<const float> values);
  // The same in pieces of whole rows, in order; the last one must complete it before the next
  // element is started.
  void start_obsm(const std::string& key, int64_t dim);
  void append_obsm(std::span<const float> rows);
  // obsm[key] as a data frame with named columns: values [n_obs, columns] row-major. HDF5
  // has no "/" in names: it becomes "|".
  void add_obsm_frame(const std::string& key, const std::vector<std::string>& columns,
                      std::span<const float> values);
  // varm[key], [n_vars, dim] row-major, f32.
  void add_varm(const std::string& key, int64_t dim, std::span<const float> values);

  // uns[key]: see add_json() in io/h5ad_uns.h.
  void add_uns(const std::string& key, const nlohmann::json& value);
  void add_uns_strings(const std::string& key, const std::vector<std::string>& values);

  // Closes the copy, flushes it to the disk and gives it the final name.
  void commit();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace scgraft
