// SPDX-License-Identifier: Apache-2.0
#include "runtime/log.h"

#include <utility>

namespace scgraft {
namespace {

LogCallback& callback() {
  static LogCallback instance;
  return instance;
}

}  // namespace

void set_log_callback(LogCallback next) { callback() = std::move(next); }

void log(LogLevel level, const std::string& code, const std::string& text) {
  if (callback()) callback()(level, code, text);
}

}  // namespace scgraft
