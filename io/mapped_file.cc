// SPDX-License-Identifier: Apache-2.0
#include "io/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "io/storage_error.h"

namespace scgraft {
namespace {

// Closes the descriptor at the end of the scope; a mapping outlives it.
struct Descriptor {
  int number;
  ~Descriptor() { ::close(number); }
};

}  // namespace

std::shared_ptr<const MappedFile> MappedFile::open(const std::string& path, FileKind kind) {
  // Not blocking: opening a pipe that nobody writes to would wait for ever.
  const int number = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (number < 0 && (errno == ENOENT || errno == ENOTDIR))
    throw_file_error(kind, path, "there is no such file", "E-FILE-MISSING", "check the path");
  if (number < 0) throw_storage_error("read", path, errno);
  const Descriptor descriptor{number};
  struct stat info;
  if (::fstat(number, &info) != 0) throw_storage_error("read", path, errno);
  if (!S_ISREG(info.st_mode))
    throw_file_error(
        kind, path,
        S_ISDIR(info.st_mode) ? "is a folder, a file is needed" : "is not a regular file",
        "E-FILE-TYPE", "give the path of a file on a disk");
  std::shared_ptr<MappedFile> file(new MappedFile);
  file->path_ = path;
  const size_t size = static_cast<size_t>(info.st_size);
  if (size == 0) return file;
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, number, 0);
  if (data == MAP_FAILED) throw_storage_error("map", path, errno);
  file->bytes_ = {static_cast<const std::byte*>(data), size};
  return file;
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

void MappedFile::advise_dont_need(std::span<const std::byte> part) const {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<uintptr_t>(part.data());
  // Pages that the part only touches may be in use by its neighbours.
  const uintptr_t first = (begin + page - 1) / page * page;
  const uintptr_t last = (begin + part.size()) / page * page;
  if (first < last) ::madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

}  // namespace scgraft
