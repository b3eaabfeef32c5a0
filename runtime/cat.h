// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <sstream>
#include <string>

namespace scgraft {

// One string from any number of printable parts: cat("rank ", 8) is "rank 8".
template <class... Parts>
std::string cat(const Parts&... parts) {
  std::ostringstream text;
  text.imbue(std::locale::classic());
  (text << ... << parts);
  return text.str();
}

}  // namespace scgraft
