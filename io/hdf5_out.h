// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "io/hdf5.h"

// Making HDF5 files with the elements and encoding attributes of AnnData. Failures of the disk are
// StorageErrors (exit 12) that name the file: E-NO-SPACE, else E-STORAGE.
namespace scgraft::hdf5 {

struct Compression {
  int gzip = 0;  // 0: none, 1 to 9; bytes are shuffled first
};

// Creation properties of a dataset: no times are stored, so that the same content gives the same
// bytes.
Handle dataset_properties();

// A file being written, through a name that is not yet the final one.
//   shown  the name that messages give
class OutFile {
 public:
  OutFile(const std::string& path, std::string shown);
  ~OutFile();
  OutFile(OutFile&&) noexcept;

  // Flushes and closes; without it errors of the last writes would be lost.
  void close();

  int64_t id() const { return handle_.get(); }
  const std::string& shown() const { return shown_; }
  [[noreturn]] void fail(const std::string& what) const;

 private:
  Handle handle_;
  std::string shown_;
};

// A group or dataset of an OutFile, which must outlive it. T of the templates: float, double,
// int8_t, int16_t, int32_t, int64_t.
class OutNode {
 public:
  static OutNode root(OutFile& file);

  OutNode child(const std::string& name) const;
  bool has(const std::string& name) const;
  void remove(const std::string& name);

  // Attributes; an existing one is replaced.
  void set_text(const char* name, const std::string& text);
  void set_texts(const char* name, const std::vector<std::string>& texts);
  void set_integers(const char* name, std::span<const int64_t> values);
  void set_boolean(const char* name, bool value);
  // The pair of attributes that says how an element is to be read.
  void set_encoding(const std::string& type, const std::string& version);

  OutNode add_group(const std::string& name, const std::string& encoding,
                    const std::string& version);
  // array 0.2.0, row-major.
  template <class T>
  OutNode add_array(const std::string& name, std::span<const int64_t> shape,
                    std::span<const T> values, Compression compression = {});
  template <class T>
  OutNode add_array(const std::string& name, const std::vector<T>& values,
                    Compression compression = {}) {
    const int64_t shape[] = {static_cast<int64_t>(values.size())};
    return add_array<T>(name, shape, std::span<const T>(values), compression);
  }
  // array 0.2.0 of booleans (0 or 1), in the enumeration that h5py reads as bool.
  OutNode add_booleans(const std::string& name, std::span<const uint8_t> values);
  // string-array 0.2.0, variable-length UTF-8.
  OutNode add_strings(const std::string& name, std::span<const std::string> values);
  // Scalars: string 0.2.0 and numeric-scalar 0.2.0.
  OutNode add_text(const std::string& name, const std::string& value);
  OutNode add_integer(const std::string& name, int64_t value);
  OutNode add_real(const std::string& name, double value);
  OutNode add_boolean(const std::string& name, bool value);

  // An empty list that grows; array 0.2.0.
  template <class T>
  OutNode add_list(const std::string& name, Compression compression);
  // Adds to the end of a list made by add_list with the same T.
  template <class T>
  void append(std::span<const T> values);

  int64_t id() const { return handle_->get(); }
  const std::string& path() const { return path_; }

 private:
  OutNode(const OutFile* file, Handle handle, std::string path);
  void check(int64_t status, const char* what) const;
  // Without values the content comes later.
  OutNode add_dataset(const std::string& name, int64_t type, int64_t space, const void* values);
  OutNode add_dataset(const std::string& name, int64_t type, int64_t space, int64_t create,
                      const void* values);
  void set_attribute(const char* name, int64_t type, int64_t space, const void* values);

  const OutFile* file_;
  std::shared_ptr<Handle> handle_;
  std::string path_;
};

}  // namespace scgraft::hdf5
