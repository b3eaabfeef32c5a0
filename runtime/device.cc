// SPDX-License-Identifier: Apache-2.0
#include "runtime/device.h"

#include "runtime/config.h"
#include "runtime/error.h"

namespace scgraft {

Device Device::parse(std::string_view text) {
  if (text == "cpu" || text == "auto") return cpu();
  if (text == "cuda" || text.starts_with("cuda:")) {
    DeviceError error(
        cat("device ", text, " was asked for, but this program was built without CUDA"),
        "E-DEVICE-NONE");
    error.set_hint("--device cpu");
    throw error;
  }
  ConfigError error(cat("--device must be auto, cpu, cuda or cuda:N, got \"", text, "\""));
  error.set_hint("--device cpu");
  throw error;
}

std::string Device::name() const { return is_cpu() ? "cpu" : cat("cuda:", index_); }

std::ostream& operator<<(std::ostream& out, const Device& device) { return out << device.name(); }

}  // namespace scgraft
