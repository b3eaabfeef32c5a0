// SPDX-License-Identifier: Apache-2.0
#include "io/output_folder.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <system_error>

#include "io/manifest.h"
#include "io/storage_error.h"
#include "io/text.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

namespace fs = std::filesystem;

std::string parent_of(const std::string& path) {
  const std::string parent = fs::path(path).parent_path().string();
  return parent.empty() ? "." : parent;
}

[[noreturn]] void refuse(const std::string& path, const std::string& message,
                         const std::string& code, const std::string& hint) {
  ConfigError error(cat("the output ", escaped(path), " ", message), code);
  error.set_hint(hint);
  error.set_where(path);
  throw error;
}

}  // namespace

OutputFolder::OutputFolder(const std::string& path, Overwrite overwrite)
    : path_(fs::path(path).lexically_normal().string()), overwrite_(overwrite) {
  while (path_.size() > 1 && path_.ends_with('/')) path_.pop_back();
  const std::string name = fs::path(path_).filename().string();
  if (name.empty() || name == "." || name == "..")
    refuse(path, "is no name for a new folder", "E-OUTPUT", "give the name of a folder to be made");
  check_target();
  temporary_ = (fs::path(parent_of(path_)) / cat(".", name, ".tmp-", ::getpid())).string();
  std::error_code ignored;
  fs::remove_all(temporary_, ignored);  // left by a crashed process of the same number
  if (::mkdir(temporary_.c_str(), 0777) != 0) throw_storage_error("make the folder", path_, errno);
}

OutputFolder::~OutputFolder() {
  std::error_code ignored;
  if (!committed_) fs::remove_all(temporary_, ignored);
}

void OutputFolder::check_target() const {
  std::error_code error;
  const fs::file_status status = fs::symlink_status(path_, error);
  if (status.type() == fs::file_type::not_found) return;
  if (fs::is_directory(status) && fs::is_empty(path_, error) && !error) return;
  if (overwrite_ == Overwrite::refuse)
    refuse(path_, "exists already and was left as it is", "E-EXISTS",
           "choose another name, or pass --force to replace it");
  if (!fs::is_directory(status) || !fs::exists(fs::path(path_) / kManifestFile, error))
    refuse(path_, "is no folder that this program wrote; it was left as it is", "E-OUTPUT",
           "choose another name");
}

void OutputFolder::move_into_place() {
  check_target();  // it may have come into being meanwhile
  // A rename replaces an empty folder, and fails over one that holds anything.
  if (::rename(temporary_.c_str(), path_.c_str()) == 0) return;
  if (errno != ENOTEMPTY && errno != EEXIST) throw_storage_error("write", path_, errno);
  if (overwrite_ == Overwrite::refuse) check_target();
  if (::renameat2(AT_FDCWD, temporary_.c_str(), AT_FDCWD, path_.c_str(), RENAME_EXCHANGE) != 0) {
    // Some network file systems cannot exchange: for a moment there is no folder of the name.
    const std::string old = temporary_ + ".old";
    if (::rename(path_.c_str(), old.c_str()) != 0 ||
        ::rename(temporary_.c_str(), path_.c_str()) != 0)
      throw_storage_error("replace", path_, errno);
    if (::rename(old.c_str(), temporary_.c_str()) != 0)
      throw_storage_error("remove the former content of", path_, errno);
  }
  std::error_code ignored;
  fs::remove_all(temporary_, ignored);  // what the name held before
}

void OutputFolder::commit() {
  write_manifest(temporary_);
  sync_directory(temporary_);
  move_into_place();
  committed_ = true;
  sync_directory(parent_of(path_));
}

}  // namespace scgraft
