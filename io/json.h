// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>

#include "io/file_error.h"
#include "io/limits.h"
#include "io/output.h"

namespace scgraft {

// What a JSON text may be; everything beyond is refused before it is built in memory.
struct JsonLimits {
  int64_t bytes = limits::kJsonBytes;
  int64_t depth = limits::kJsonDepth;
};

// Parses strict JSON (RFC 8259): UTF-8 only, no comments, nothing after the value, and no object
// that names a key twice.
//   file  name for messages
// Throws DataError or ModelError (by `kind`; E-JSON, E-JSON-DUPLICATE, E-LIMIT) with the byte
// offset of the fault.
nlohmann::json parse_json(std::span<const std::byte> bytes, const std::string& file, FileKind kind,
                          JsonLimits limits = {});

// parse_json() of a whole file.
nlohmann::json read_json(const std::string& path, FileKind kind, JsonLimits limits = {});

// Writes `value` indented by two spaces, keys sorted, newline at the end; see OutputFile.
void write_json(const std::string& path, const nlohmann::json& value, Overwrite overwrite);

// JSON has no NaN and no infinities. `value` under `name`; where it is not finite: null, and under
// "<name>_nonfinite" the word "nan", "inf" or "-inf".
void set_number(nlohmann::json& object, const std::string& name, double value);

// `value` with set_number() done to every number of every object inside; null in arrays.
nlohmann::json with_finite_numbers(const nlohmann::json& value);

// The text that write_json() writes. Invalid UTF-8 is replaced by U+FFFD.
std::string json_text(const nlohmann::json& value);

}  // namespace scgraft
