// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string>

#include "app/session.h"
#include "runtime/error.h"

namespace scgraft {

// The one JSON document of --json, ended by a newline:
//   {"schema": "scgraft/<verb>/1", "ok": true, "version", "result", "warnings": [{code, message}],
//    "timing_s": {"total", ...}, "outputs": [{path, sha256, bytes}]}
// A NaN or infinite number becomes null beside "<name>_nonfinite": "nan" | "inf" | "-inf".
std::string success_document(const Session& session);

//   {"schema": "scgraft/error/1", "ok": false, "version",
//    "error": {code, exit, message, hint, where: {file, path}}}
std::string error_document(const Error& error);

// At most four lines for people: code and message, where, what to try; for our own faults how to
// report them.
std::string error_text(const Error& error, bool colour);

}  // namespace scgraft
