// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string>

namespace scgraft {

// Whose fault a bad file is, which decides the exit code: input data (10) or a model (11).
enum class FileKind { data, model };

// Throws DataError or ModelError about `file`. `message` and `object` must already be escaped
// where they quote file content; the file name is put in front of the message here.
//   object  the tensor, entry or field inside the file; may be empty
[[noreturn]] void throw_file_error(FileKind kind, const std::string& file,
                                   const std::string& message, const std::string& code,
                                   const std::string& hint = {}, const std::string& object = {});

}  // namespace scgraft
