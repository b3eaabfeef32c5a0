// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <string>

namespace scgraft {

// Bytes of a size such as "500MB", "7.5GB" or "6GiB"; 0 of an empty text. Throws ConfigError
// (E-USAGE) for other texts and for sizes that are not positive.
int64_t parse_bytes(const std::string& text);

}  // namespace scgraft
