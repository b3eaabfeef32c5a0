// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#include "runtime/arena.h"
#include "runtime/device.h"
#include "runtime/tensor_view.h"

namespace scgraft {

struct ContextOptions {
  int threads = 0;           // 0: default_threads()
  bool reference = false;    // run the plain-loop definition of every operation
  int64_t memory_limit = 0;  // bytes for activations; 0: no limit but the machine's
};

// Which random numbers a step draws: dropout masks are a function of these and of logical
// coordinates (site, cell, position, feature).
struct RandomState {
  uint64_t seed = 0;
  uint32_t step = 0;
};

// Where and with what to run. First argument of every operation; no globals.
class Context {
 public:
  explicit Context(Device device = Device::cpu(), ContextOptions options = {});

  Device device() const { return device_; }
  int threads() const { return threads_; }
  // True: operations run their definition (plain loops) instead of their fast path.
  bool reference() const { return reference_; }

  Arena& activations() { return activations_; }  // lives for one training step or one request
  Arena& scratch() { return scratch_; }          // lives for one operation
  RandomState& random() { return random_; }

  // Throws DeviceError naming the op when a tensor is not on this context's device. Empty views
  // are not looked at.
  template <class... Views>
  void require_here(const char* op, const Views&... views) const {
    (require_one_here(op, views), ...);
  }

 private:
  void require_one_here(const char* op, const ConstTensorView& view) const;

  Device device_;
  int threads_;
  bool reference_;
  Arena activations_;
  Arena scratch_;
  RandomState random_;
};

}  // namespace scgraft
