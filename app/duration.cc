// SPDX-License-Identifier: Apache-2.0
#include "app/duration.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>

#include "io/text.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

[[noreturn]] void refuse(const std::string& text) {
  throw ConfigError(cat("a time looks like 90s, 15m or 3h50m, got \"", escaped(text), "\""),
                    "E-USAGE");
}

double unit_of(char unit) {
  switch (unit) {
    case 's':
      return 1;
    case 'm':
      return 60;
    case 'h':
      return 3600;
    case 'd':
      return 86400;
    default:
      return 0;
  }
}

}  // namespace

double parse_duration(const std::string& text) {
  double seconds = 0;
  double previous = 1e300;  // units get smaller from left to right
  const char* at = text.data();
  const char* const end = at + text.size();
  if (at == end) refuse(text);
  while (at != end) {
    double number = 0;
    const auto [stop, failure] = std::from_chars(at, end, number, std::chars_format::fixed);
    if (failure != std::errc() || !(number >= 0) || !std::isfinite(number)) refuse(text);
    const bool bare = stop == end;
    if (bare && at != text.data()) refuse(text);
    const double unit = bare ? 1 : unit_of(*stop);
    if (unit == 0 || unit >= previous) refuse(text);
    seconds += number * unit;
    previous = unit;
    at = bare ? end : stop + 1;
  }
  return seconds;
}

std::string duration_text(double seconds) {
  if (!(seconds >= 0) || seconds > 1e9) return "?";
  if (seconds < 9.95) return fmt::format("{:.1f} s", seconds);
  const auto whole = static_cast<int64_t>(std::llround(seconds));
  if (whole < 60) return fmt::format("{} s", whole);
  if (whole < 3600) return fmt::format("{} min {} s", whole / 60, whole % 60);
  return fmt::format("{} h {} min", whole / 3600, whole % 3600 / 60);
}

}  // namespace scgraft
