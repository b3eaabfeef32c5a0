// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string>
#include <vector>

namespace scgraft {

inline constexpr const char* kManifestFile = "MANIFEST.sha256";

// Whether one file of a folder is what its manifest says.
struct FileCheck {
  std::string file;   // name inside the folder
  std::string fault;  // what is wrong, empty when nothing is
  bool ok() const { return fault.empty(); }
};

// Writes MANIFEST.sha256, a line "<64 hexadecimal digits>  <name>" for every file in the folder,
// sorted by name: what `sha256sum -c` reads. Folders inside are not looked at. Throws StorageError.
void write_manifest(const std::string& folder);

// Compares the files of a folder with its manifest: the listed ones in its order, then those that
// it does not list. Throws ModelError (E-FILE-MISSING, E-MANIFEST) when there is no manifest or it
// cannot be read.
std::vector<FileCheck> check_manifest(const std::string& folder);

}  // namespace scgraft
