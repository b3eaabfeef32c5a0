// SPDX-License-Identifier: Apache-2.0
#include "io/file_error.h"

#include "io/text.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

template <class E>
[[noreturn]] void fail(const std::string& file, const std::string& message, const std::string& code,
                       const std::string& hint, const std::string& object) {
  E error(file.empty() ? message : cat(escaped(file), ": ", message), code);
  error.set_hint(hint);
  error.set_where(file, object);
  throw error;
}

}  // namespace

void throw_file_error(FileKind kind, const std::string& file, const std::string& message,
                      const std::string& code, const std::string& hint, const std::string& object) {
  if (kind == FileKind::data) fail<DataError>(file, message, code, hint, object);
  fail<ModelError>(file, message, code, hint, object);
}

}  // namespace scgraft
