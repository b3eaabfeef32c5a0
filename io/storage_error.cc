// SPDX-License-Identifier: Apache-2.0
#include "io/storage_error.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "io/text.h"
#include "runtime/error.h"

namespace scgraft {

void throw_storage_error(const std::string& action, const std::string& path, int error) {
  const std::string reason = std::generic_category().message(error);
  std::string code = "E-STORAGE";
  std::string hint;
  switch (error) {
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      code = "E-NO-SPACE";
      hint = "free space there, or write to another disk; nothing was left behind";
      break;
    case EACCES:
    case EPERM:
    case EROFS:
      code = "E-PERMISSION";
      hint = "choose a folder that you may write to";
      break;
    case ENOENT:
    case ENOTDIR:
      code = "E-NO-FOLDER";
      hint = "make the folder first, or correct the path";
      break;
    default:
      break;
  }
  StorageError failure(cat("cannot ", action, " ", escaped(path), ": ", reason), code);
  failure.set_hint(hint);
  failure.set_where(path);
  throw failure;
}

void sync_directory(const std::string& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return;  // a folder that may be written but not read: nothing to sync with
  const int status = ::fsync(descriptor);
  const int error = errno;
  ::close(descriptor);
  if (status != 0 && error != EINVAL && error != EROFS)
    throw_storage_error("flush the folder", path, error);
}

}  // namespace scgraft
