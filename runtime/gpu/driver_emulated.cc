// SPDX-License-Identifier: Apache-2.0
#include "runtime/gpu/driver.h"
#include "runtime/gpu/emulator.h"

namespace scgraft::gpu {

// Two, so that tensors of one can be mistaken for those of the other.
int device_count() { return 2; }
std::string why_no_device() { return {}; }
void use(Device) {}
int compute_capability(Device) { return emulator_options().compute_capability; }
int64_t shared_memory_limit(Device) { return emulator_options().max_shared; }
DeviceFacts facts(int) {
  return {.name = "emulated device",
          .capability = emulator_options().compute_capability,
          .has_kernels = true,
          .shared_limit = emulator_options().max_shared};
}
std::string architectures() { return "the emulated device"; }
int driver_version() { return 0; }
int runtime_version() { return 0; }

}  // namespace scgraft::gpu
