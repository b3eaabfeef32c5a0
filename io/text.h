// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>
#include <set>
#include <string>
#include <string_view>

namespace scgraft {

// File content made safe for a message on a terminal: control characters and bytes that are not
// UTF-8 become \n, \t or \xNN, a backslash is doubled, and text longer than `limit` bytes ends
// in "...".
std::string escaped(std::string_view text, size_t limit = 200);
// Every name as escaped() gives it, with commas between them.
std::string escaped_list(const std::set<std::string>& names);

// True when the bytes are well-formed UTF-8 (no overlong forms, no surrogates).
bool is_utf8(std::string_view text);

}  // namespace scgraft
