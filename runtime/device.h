// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <ostream>
#include <string>
#include <string_view>

namespace scgraft {

// Where tensors live and operations run. A value: copy freely, compare with ==.
class Device {
 public:
  static Device cpu() { return Device(); }

  // "cpu" or "auto" (the CPU, in a build without CUDA).
  // "cuda" and "cuda:N" throw DeviceError when this build or machine has none.
  static Device parse(std::string_view text);

  bool is_cpu() const { return index_ < 0; }
  bool is_cuda() const { return index_ >= 0; }
  std::string name() const;  // "cpu", "cuda:0"

  friend bool operator==(const Device&, const Device&) = default;

 private:
  int index_ = -1;
};

std::ostream& operator<<(std::ostream& out, const Device& device);

}  // namespace scgraft
