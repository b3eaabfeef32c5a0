// SPDX-License-Identifier: Apache-2.0
#include "runtime/context.h"

#include <omp.h>

#include "runtime/cpu.h"
#include "runtime/parallel.h"

namespace scgraft {

Context::Context(Device device, ContextOptions options)
    : device_(device),
      threads_(options.threads > 0 ? options.threads : default_threads()),
      reference_(options.reference),
      activations_(device, options.memory_limit),
      scratch_(device) {}

void Context::require_one_here(const char* op, const ConstTensorView& view) const {
  if (view.empty() || view.device() == device_) return;
  throw DeviceError(cat(op, ": a tensor is on ", view.device(), ", the context runs on ", device_));
}

int thread_index() { return omp_get_thread_num(); }

}  // namespace scgraft
