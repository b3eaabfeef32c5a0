// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <vector>

#include "runtime/config.h"
#include "runtime/gpu/emulator.h"

namespace scgraft {

// Kernels of a device are chosen by its compute capability. On the emulated one it can be set, so
// that the tensor cores of 7.5 take part, with the shared memory that it has; on others there is
// one.
class Capability {
 public:
  explicit Capability(int capability) {
    if constexpr (kCudaEmulated) gpu::emulator_options().become(capability);
  }
  ~Capability() {
    if constexpr (kCudaEmulated)
      gpu::emulator_options().become(gpu::EmulatorOptions().compute_capability);
  }
  Capability(const Capability&) = delete;
  Capability& operator=(const Capability&) = delete;

  static std::vector<int> all() {
    return kCudaEmulated ? std::vector<int>{86, 75} : std::vector<int>{0};
  }
};

}  // namespace scgraft
