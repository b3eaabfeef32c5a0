// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "io/file_error.h"

namespace scgraft {

// An entry of a dictionary whose keys are text and whose values are numbers or text.
struct FlatEntry {
  std::string key;
  std::variant<int64_t, double, std::string> value;
};

// Reads such a dictionary from a Python pickle (told by its first byte; numbers may be NumPy
// scalars; nothing is executed, io/pickle.h) or from JSON. Entries of a pickle come in its order,
// those of JSON by key.
// Throws DataError or ModelError (by `kind`): E-DICTIONARY when the file holds anything else or a
// key twice, and what Pickle::parse() and parse_json() throw.
std::vector<FlatEntry> parse_flat_dictionary(std::span<const std::byte> bytes, FileKind kind,
                                             const std::string& file);
std::vector<FlatEntry> read_flat_dictionary(const std::string& path, FileKind kind);

}  // namespace scgraft
