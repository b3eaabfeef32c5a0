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
  // Throws DeviceError: E-DEVICE-NONE when this build or machine has no such device,
  // E-DEVICE-ARCH when the program was not compiled for it.
  static Device cuda(int index = 0);

  // The CUDA device with most free memory among those this program has kernels for, else the CPU;
  // the log says which. Never the emulated one.
  static Device best();

  // "cpu"; "cuda" (the first one) or "cuda:N"; "auto": best(). Throws DeviceError as cuda() does,
  // and ConfigError for other words.
  static Device parse(std::string_view text);

  bool is_cpu() const { return index_ < 0; }
  bool is_cuda() const { return index_ >= 0; }
  // Number of a CUDA device; -1 for the CPU.
  int index() const { return index_; }
  std::string name() const;  // "cpu", "cuda:0"

  friend bool operator==(const Device&, const Device&) = default;

 private:
  int index_ = -1;
};

// CUDA devices that this program can use: 0 in a build without CUDA or where no driver answers.
int cuda_device_count();

std::ostream& operator<<(std::ostream& out, const Device& device);

}  // namespace scgraft
