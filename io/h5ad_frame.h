// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "io/hdf5.h"

namespace scgraft {

// codes[i] is an index into categories, -1 where the value is missing. Categories of numbers and
// booleans are given as text, the way Python prints them.
struct Categorical {
  std::vector<int32_t> codes;
  std::vector<std::string> categories;
  bool ordered = false;
};
using Strings = std::vector<std::string>;
using Integers = std::vector<int64_t>;
using Reals = std::vector<double>;
struct Booleans {
  std::vector<uint8_t> values;  // 0 or 1
};

// One column of an obs or var table.
struct Column {
  std::string name;
  std::variant<Categorical, Strings, Integers, Reals, Booleans> values;
  // 1 where a nullable column or a categorical has no value; empty when nothing is missing. A NaN
  // of a floating-point column is a value, as in the file.
  std::vector<uint8_t> missing;

  int64_t size() const;
  bool is_missing(int64_t row) const {
    return !missing.empty() && missing[static_cast<size_t>(row)] != 0;
  }
  // The value as text; empty where it is missing.
  std::string text(int64_t row) const;
};

// The column as labels. What is not categorical in the file gets its distinct values, sorted, as
// categories: numbers by value, text by bytes. NaN counts as missing.
Categorical as_categorical(const Column& column);

enum class ColumnKind { categorical, string, integer, real, boolean, other };
const char* name_of(ColumnKind kind);

struct ColumnInfo {
  std::string name;
  ColumnKind kind = ColumnKind::other;
  bool nullable = false;  // stored with a mask of missing values
  std::string stored;     // what the file says: "categorical", "float32", ...
};

// A data frame of the file (obs, var, raw/var), columns read on demand.
//
// Before anndata 0.7 a table was one compound dataset, whose first field names the rows. The labels
// of an integer column were kept in uns as "<column>_categories"; obs and var shared them, so they
// belong to a column only if there is one for each of its codes.
//
// Errors are DataErrors with the path of the object: E-H5AD-MISSING, E-H5AD-LAYOUT, E-H5AD-CODE
// (a category code without a category).
class Frame {
 public:
  // role: how the table is called in messages, e.g. "obs"; uns: where such labels are.
  Frame(hdf5::Node table, std::string role, std::optional<hdf5::Node> uns = {});

  int64_t size() const { return size_; }  // rows
  const std::string& index_name() const { return index_name_; }
  // In the order of the table.
  const std::vector<std::string>& columns() const { return columns_; }
  bool has(const std::string& column) const;
  // A compound dataset, see above.
  bool is_compound() const { return !table_.is_group(); }
  // Does the column have its labels in uns?
  bool has_labels_in_uns(const std::string& column) const;

  ColumnInfo info(const std::string& column) const;
  // E-NO-COLUMN names the columns that exist.
  Column read(const std::string& column) const;
  // Names of the rows: cell or gene identifiers.
  Strings index() const;

 private:
  void open_group();
  hdf5::Node member(const std::string& name) const;
  hdf5::Node open(const std::string& column) const;
  std::optional<hdf5::Node> labels_in_uns(const std::string& name, const hdf5::Node& codes) const;
  Column read(const std::string& name, const hdf5::Node& node) const;
  Column read_dataset(const std::string& name, const hdf5::Node& node) const;
  Column read_nullable(const std::string& name, const hdf5::Node& node) const;
  Column read_categorical(const std::string& name, const hdf5::Node& codes,
                          const hdf5::Node& categories, bool ordered) const;
  void want_rows(const hdf5::Node& node) const;

  hdf5::Node table_;
  std::optional<hdf5::Node> uns_;
  std::string role_;
  std::string index_name_;
  std::vector<std::string> columns_;
  int64_t size_ = 0;
};

}  // namespace scgraft
