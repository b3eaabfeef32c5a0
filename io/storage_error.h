// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string>

namespace scgraft {

// Throws StorageError (exit 12) "cannot <action> <path>: <reason of the system>" with a hint that
// fits the reason.
//   action  what was tried, e.g. "write"
//   error   an errno value
// Codes: E-NO-SPACE, E-PERMISSION, E-NO-FOLDER, else E-STORAGE.
[[noreturn]] void throw_storage_error(const std::string& action, const std::string& path,
                                      int error);

// Flushes the entries of a folder to the disk, so that a rename inside it survives a power cut.
// Throws StorageError; a file system that cannot do it is left alone.
void sync_directory(const std::string& path);

}  // namespace scgraft
