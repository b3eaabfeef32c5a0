// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string>

namespace scgraft {

// Seconds of a time such as "90", "90s", "15m", "3h50m" or "1d". Throws ConfigError (E-USAGE).
double parse_duration(const std::string& text);

// "0.8 s", "12 s", "3 min 20 s", "3 h 50 min".
std::string duration_text(double seconds);

}  // namespace scgraft
