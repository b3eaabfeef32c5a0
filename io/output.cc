// SPDX-License-Identifier: Apache-2.0
#include "io/output.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <system_error>

#include "io/storage_error.h"
#include "io/text.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

bool exists(const std::string& path) {
  struct stat info;
  return ::lstat(path.c_str(), &info) == 0;  // a dangling link counts
}

[[noreturn]] void refuse(const std::string& path) {
  ConfigError error(cat("the output ", escaped(path), " exists already and was left as it is"),
                    "E-EXISTS");
  error.set_hint("choose another name, or pass --force to replace it");
  error.set_where(path);
  throw error;
}

std::string folder_of(const std::string& path) {
  const std::string folder = std::filesystem::path(path).parent_path().string();
  return folder.empty() ? "." : folder;
}

}  // namespace

OutputFile::OutputFile(std::string path, Overwrite overwrite)
    : path_(std::move(path)), overwrite_(overwrite) {
  const std::filesystem::path target(path_);
  if (path_ == "-") {
    ConfigError error("the output - would be standard output, a file name is needed", "E-OUTPUT");
    error.set_hint("name a file; annotate --csv - writes a table to standard output");
    throw error;
  }
  if (target.filename().empty() || std::filesystem::is_directory(target)) {
    ConfigError error(cat("the output ", escaped(path_), " is a folder, a file name is needed"),
                      "E-OUTPUT");
    error.set_where(path_);
    throw error;
  }
  if (overwrite_ == Overwrite::refuse && exists(path_)) refuse(path_);
  temporary_ =
      (target.parent_path() / cat(".", target.filename().string(), ".tmp-", ::getpid())).string();
  open();
}

OutputFile::~OutputFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
  if (!committed_) ::unlink(temporary_.c_str());
}

// The file is made at once, so that a folder that cannot be written is reported before the work.
void OutputFile::open() {
  constexpr int kFlags = O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW;
  descriptor_ = ::open(temporary_.c_str(), kFlags, 0666);
  if (descriptor_ < 0 && errno == EEXIST) {  // left by a crashed process of the same number
    ::unlink(temporary_.c_str());
    descriptor_ = ::open(temporary_.c_str(), kFlags, 0666);
  }
  if (descriptor_ < 0) throw_storage_error("write", path_, errno);
  // Private until it is complete; the mode that the process's umask gives is kept for the end.
  struct stat info;
  if (::fstat(descriptor_, &info) == 0) mode_ = info.st_mode & 0777;
  ::fchmod(descriptor_, 0600);
}

void OutputFile::write(std::string_view text) { write(std::as_bytes(std::span(text))); }

void OutputFile::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(descriptor_, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) throw_storage_error("write", path_, errno);
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
}

void OutputFile::commit() {
  // A writer that opened temporary() itself may have put another file in its place.
  const int written = ::open(temporary_.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW);
  if (written < 0) throw_storage_error("write", path_, errno);
  const bool flushed = ::fchmod(written, mode_) == 0 && ::fsync(written) == 0;
  const int error = errno;
  const bool closed = ::close(written) == 0;
  if (!flushed) throw_storage_error("flush", path_, error);
  if (!closed) throw_storage_error("flush", path_, errno);
  if (::close(std::exchange(descriptor_, -1)) != 0) throw_storage_error("flush", path_, errno);

  int status = -1;
  if (overwrite_ == Overwrite::refuse) {
    status = ::renameat2(AT_FDCWD, temporary_.c_str(), AT_FDCWD, path_.c_str(), RENAME_NOREPLACE);
    if (status != 0 && errno == EEXIST) refuse(path_);
    if (status != 0 && errno != EINVAL && errno != ENOSYS)
      throw_storage_error("write", path_, errno);
    // Some network file systems cannot rename without replacing.
    if (status != 0 && exists(path_)) refuse(path_);
  }
  if (status != 0 && ::rename(temporary_.c_str(), path_.c_str()) != 0)
    throw_storage_error("write", path_, errno);
  committed_ = true;
  sync_directory(folder_of(path_));
}

void write_file(const std::string& path, std::string_view text, Overwrite overwrite) {
  OutputFile out(path, overwrite);
  out.write(text);
  out.commit();
}

void make_directory(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) throw_storage_error("make the folder", path, error.value());
}

}  // namespace scgraft
