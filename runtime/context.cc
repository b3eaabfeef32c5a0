// SPDX-License-Identifier: Apache-2.0
#include "runtime/context.h"

#include <omp.h>

#include <cstring>

#include "runtime/copy_bytes.h"
#include "runtime/cpu.h"
#include "runtime/gpu/library_products.h"
#include "runtime/parallel.h"

namespace scgraft {

Context::Context(Device device, ContextOptions options)
    : device_(device),
      threads_(options.threads > 0 ? options.threads : default_threads()),
      reference_(options.reference),
      activations_(device, options.memory_limit, &op_),
      scratch_(device, device.is_cuda() ? options.memory_limit : 0, &op_),
      stream_(device) {
  require<DeviceError>(!reference_ || device.is_cpu(),
                       "the definition of operations runs on the CPU, not on ", device);
  if (options.linear == LinearBackend::own) return;
  if constexpr (kBuiltWithCuda) {
    if (device.is_cuda()) {
      library_products_ = gpu::make_library_products(device);
      return;
    }
  }
  DeviceError error(cat("cuBLASLt multiplies on CUDA devices, not on ", device), "E-LIBRARY");
  error.set_hint("--device cuda, or -s train.linear_backend=own");
  throw error;
}

void Context::require_one_here(const char* op, const ConstTensorView& view) const {
  if (view.empty() || view.device() == device_) return;
  throw DeviceError(cat(op, ": a tensor is on ", view.device(), ", the context runs on ", device_));
}

void Context::require_cpu() const {
  if (device_.is_cpu()) return;
  DeviceError error(cat(op_, " has no CUDA kernel"));
  error.set_hint("--device cpu");
  throw error;
}

void copy(const Stream& stream, ConstTensorView from, TensorView to) {
  require_copyable(from, to);
  copy_bytes(from, to, stream.handle());
}

void copy(Context& ctx, ConstTensorView from, TensorView to) { copy(ctx.stream(), from, to); }

void set_zero(Context& ctx, TensorView view) {
  if (view.nbytes() == 0) return;
  ctx.require_here("set_zero", view);
  if constexpr (kBuiltWithCuda) {
    if (view.device().is_cuda())
      return gpu::fill_zero(view.device(), view.data(), view.nbytes(), ctx.stream().handle());
  }
  std::memset(view.data(), 0, static_cast<size_t>(view.nbytes()));
}

int thread_index() { return omp_get_thread_num(); }

}  // namespace scgraft
