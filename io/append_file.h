// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string>
#include <string_view>

namespace scgraft {

// A log that grows in place, line by line, so that it can be read while a run goes on and holds
// everything up to a crash. Results are never written this way; see OutputFile.
//
//   AppendFile log("metrics.jsonl");
//   log.line(R"({"step": 1})");
//   log.close();
//
// Makes the file when it is not there. Throws StorageError naming the path and the system's reason.
class AppendFile {
 public:
  explicit AppendFile(std::string path);
  ~AppendFile();  // closes without a flush to the disk
  AppendFile(const AppendFile&) = delete;
  AppendFile& operator=(const AppendFile&) = delete;

  const std::string& path() const { return path_; }

  // Adds `text`, which holds no newline, and a newline. Readers see it at once; after an error the
  // last line may be incomplete.
  void line(std::string_view text);

  // Flushes the file to the disk and closes it. Lines cannot be added afterwards.
  void close();

 private:
  std::string path_;
  int descriptor_ = -1;
};

}  // namespace scgraft
