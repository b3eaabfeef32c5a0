// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <functional>
#include <string>

#include "runtime/cat.h"

namespace scgraft {

enum class LogLevel { debug, info, warning };

// Library code never prints. What it has to say goes through this callback, which the application
// sets once, before threads start; without one it is dropped.
using LogCallback = std::function<void(LogLevel, const std::string& code, const std::string& text)>;
void set_log_callback(LogCallback callback);

// code: stable identifier of a warning, "W-..."; empty for plain information.
void log(LogLevel level, const std::string& code, const std::string& text);

template <class... Parts>
void log_info(const Parts&... parts) {
  log(LogLevel::info, "", cat(parts...));
}
template <class... Parts>
void log_warning(const std::string& code, const Parts&... parts) {
  log(LogLevel::warning, code, cat(parts...));
}

}  // namespace scgraft
