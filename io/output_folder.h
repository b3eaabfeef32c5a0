// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string>

#include "io/output.h"

namespace scgraft {

// A folder that comes into being as a whole: its files are written into a hidden sibling,
// commit() adds their manifest (io/manifest.h), flushes everything and renames the sibling. Until
// then the final name holds what it held; without commit() the sibling is removed.
//
//   OutputFolder out("my-adapter", Overwrite::refuse);
//   write_json(out / "labels.json", labels, Overwrite::refuse);
//   out.commit();
//
// Only a folder that has a manifest, which this program wrote, is ever replaced. An empty folder
// counts as none. Throws ConfigError (E-EXISTS, E-OUTPUT) for a name that is taken, StorageError.
class OutputFolder {
 public:
  OutputFolder(const std::string& path, Overwrite overwrite);
  ~OutputFolder();
  OutputFolder(const OutputFolder&) = delete;
  OutputFolder& operator=(const OutputFolder&) = delete;

  const std::string& path() const { return path_; }
  // Where a file of the folder is to be written.
  std::string operator/(const std::string& name) const { return temporary_ + "/" + name; }

  void commit();

 private:
  void check_target() const;
  void move_into_place();

  std::string path_;
  std::string temporary_;
  Overwrite overwrite_;
  bool committed_ = false;
};

}  // namespace scgraft
