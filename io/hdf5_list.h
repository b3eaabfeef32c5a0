// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <span>
#include <string>

#include "io/hdf5_out.h"

namespace scgraft::hdf5 {

// A dataset of one dimension that grows at its end, stored in chunks of `chunk` elements; a short
// list costs one chunk. Encoded as array 0.2.0, texts as string-array 0.2.0.
//
//   GrowingList codes = GrowingList::of<int8_t>(file, group, "codes", {.chunk = 8192});
//   codes.append<int8_t>(values);
//
// T: int8_t, int16_t, int32_t, int64_t, float, double. Throws StorageError (OutFile), DataError
// E-H5AD-TEXT for a text with a zero byte.
struct ListOptions {
  int64_t chunk = 8192;
  Compression compression = {};
};

class GrowingList {
 public:
  template <class T>
  static GrowingList of(const OutFile& file, OutNode& parent, const std::string& name,
                        ListOptions options = {});
  static GrowingList of_texts(const OutFile& file, OutNode& parent, const std::string& name,
                              ListOptions options = {});
  // Truth values, appended as uint8_t (0 or 1).
  static GrowingList of_booleans(const OutFile& file, OutNode& parent, const std::string& name,
                                 ListOptions options = {});

  template <class T>
  void append(std::span<const T> values);
  void append(std::span<const std::string> texts);

  int64_t size() const { return size_; }
  int64_t id() const { return dataset_.get(); }

 private:
  GrowingList(const OutFile& file, OutNode& parent, const std::string& name, int64_t type,
              ListOptions options);
  void write(int64_t memory_type, int64_t count, const void* values);

  const OutFile* file_;
  std::string path_;
  Handle dataset_;
  int64_t size_ = 0;
};

}  // namespace scgraft::hdf5
