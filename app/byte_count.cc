// SPDX-License-Identifier: Apache-2.0
#include "app/byte_count.h"

#include <cmath>
#include <cstdlib>

#include "runtime/error.h"

namespace scgraft {

int64_t parse_bytes(const std::string& text) {
  if (text.empty()) return 0;
  constexpr struct {
    const char* name;
    double bytes;
  } kUnits[] = {{"kB", 1e3},     {"MB", 1e6},     {"GB", 1e9},
                {"KiB", 0x1p10}, {"MiB", 0x1p20}, {"GiB", 0x1p30}};
  char* end = nullptr;
  const double number = std::strtod(text.c_str(), &end);
  const std::string unit = end;
  for (const auto& one : kUnits) {
    const double bytes = number * one.bytes;
    if (unit == one.name && end != text.c_str() && bytes >= 1 && bytes < 0x1p53)
      return static_cast<int64_t>(bytes);
  }
  ConfigError error(cat("a size is a number with a unit, e.g. 8GB or 500MB, got \"", text, "\""),
                    "E-USAGE");
  error.set_hint("--memory-limit 8GB");
  throw error;
}

}  // namespace scgraft
