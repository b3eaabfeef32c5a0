// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>
#include <span>
#include <string>
#include <string_view>

namespace scgraft {

// The one way a file comes into being. The content is written to `temporary()`, a hidden sibling
// `.<name>.tmp-<pid>`; commit() flushes it and its folder to the disk and renames it over the final
// name. Without commit() the temporary file is removed: a final name holds the complete new file,
// the complete old file, or nothing.
//
//   OutputFile out("result.csv", Overwrite::refuse);
//   out.write(text);
//   out.commit();
//
// Throws StorageError (exit 12) naming the path and the system's reason; ConfigError (exit 2) when
// the final name exists and overwriting was not asked for, is a folder, or is "-".
enum class Overwrite { refuse, replace };

class OutputFile {
 public:
  OutputFile(std::string path, Overwrite overwrite);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  const std::string& path() const { return path_; }
  // For writers that open the file themselves (HDF5). Do not mix with write().
  const std::string& temporary() const { return temporary_; }

  // Appends. All or nothing: a short write is retried, an error throws.
  void write(std::string_view text);
  void write(std::span<const std::byte> bytes);

  void commit();

 private:
  void open();
  std::string path_;
  std::string temporary_;
  Overwrite overwrite_;
  unsigned mode_ = 0644;  // of the finished file
  int descriptor_ = -1;
  bool committed_ = false;
};

// Whole-file convenience over OutputFile.
void write_file(const std::string& path, std::string_view text, Overwrite overwrite);

// Makes a folder (and its parents). An existing folder is fine. Throws StorageError.
void make_directory(const std::string& path);

}  // namespace scgraft
