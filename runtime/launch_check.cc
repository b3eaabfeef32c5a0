// SPDX-License-Identifier: Apache-2.0
#include "runtime/launch_check.h"

#include <cstdlib>
#include <string_view>

namespace scgraft {

bool synchronous_launches() {
  static const bool asked = [] {
    const char* text = std::getenv("SCGRAFT_SYNC");
    return text != nullptr && std::string_view(text) == "1";
  }();
  return asked;
}

void rethrow_naming(const char* op, const DeviceError& error) {
  DeviceError named(cat(op, ": ", error.what()), error.code());
  named.set_hint(error.hint());
  throw named;
}

}  // namespace scgraft
