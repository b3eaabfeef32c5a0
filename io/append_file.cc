// SPDX-License-Identifier: Apache-2.0
#include "io/append_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "io/storage_error.h"
#include "runtime/error.h"

namespace scgraft {

AppendFile::AppendFile(std::string path) : path_(std::move(path)) {
  descriptor_ = ::open(path_.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
  if (descriptor_ < 0) throw_storage_error("write", path_, errno);
}

AppendFile::~AppendFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void AppendFile::line(std::string_view text) {
  require(descriptor_ >= 0, "append file: a line for ", path_, ", which is closed");
  require(text.find('\n') == std::string_view::npos, "append file: a line holds a newline");
  // One call per line, so that a reader sees whole lines.
  std::string bytes(text);
  bytes += '\n';
  for (std::string_view rest = bytes; !rest.empty();) {
    const ssize_t written = ::write(descriptor_, rest.data(), rest.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) throw_storage_error("write", path_, errno);
    rest.remove_prefix(static_cast<size_t>(written));
  }
}

void AppendFile::close() {
  if (descriptor_ < 0) return;
  const int flushed = ::fsync(descriptor_);
  // A pipe or a terminal cannot be flushed, and need not be.
  const int error = flushed != 0 && errno != EINVAL ? errno : 0;
  const int closed = ::close(std::exchange(descriptor_, -1));
  if (error != 0) throw_storage_error("flush", path_, error);
  if (closed != 0) throw_storage_error("flush", path_, errno);
}

}  // namespace scgraft
