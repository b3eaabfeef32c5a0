// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "io/file_error.h"

namespace scgraft {

// A whole file as read-only memory. Tensors that lie in it hold the shared pointer, so the mapping
// goes away with the last of them. The file must not be shortened while it is mapped; replacing it
// by rename, as OutputFile does, is safe.
class MappedFile {
 public:
  // Throws DataError or ModelError (by `kind`, E-FILE-MISSING or E-FILE-TYPE) when there is no
  // such regular file, StorageError when the system refuses to read it.
  static std::shared_ptr<const MappedFile> open(const std::string& path, FileKind kind);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  int64_t size() const { return static_cast<int64_t>(bytes_.size()); }
  std::span<const std::byte> bytes() const { return bytes_; }

  // Gives the pages of a part of bytes() back to the system; they are read again when touched.
  void advise_dont_need(std::span<const std::byte> part) const;

 private:
  MappedFile() = default;
  std::string path_;
  std::span<const std::byte> bytes_;
};

}  // namespace scgraft
