// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <memory>
#include <optional>

#include "runtime/arena.h"
#include "runtime/device.h"
#include "runtime/stream.h"
#include "runtime/tensor_view.h"

namespace scgraft {

namespace gpu {
class LibraryProducts;
}

// Who multiplies with packed weights on a CUDA device.
enum class LinearBackend {
  own,       // kernels of this program
  cublaslt,  // the library of that name (docs/gpu-libraries.md)
};

struct ContextOptions {
  int threads = 0;         // 0: default_threads()
  bool reference = false;  // run the plain-loop definition of every operation
  // Bytes: on the CPU for activations, on a CUDA device for everything this program has there.
  // 0: no limit but the machine's.
  int64_t memory_limit = 0;
  LinearBackend linear = LinearBackend::own;
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
  // Throws DeviceError for the definition on a CUDA device, which is CPU code, and (E-LIBRARY) for
  // cublaslt on the CPU or where the library cannot be used.
  explicit Context(Device device = Device::cpu(), ContextOptions options = {});

  Device device() const { return device_; }
  int threads() const { return threads_; }
  // True: operations run their definition (plain loops) instead of their fast path.
  bool reference() const { return reference_; }

  Arena& activations() { return activations_; }  // lives for one training step or one request
  Arena& scratch() { return scratch_; }          // lives for one operation
  RandomState& random() { return random_; }

  // Null: products are our own.
  gpu::LibraryProducts* library_products() const { return library_products_.get(); }

  // The queue that operations put their work in. On the CPU they are done when they return.
  const Stream& stream() const { return stream_; }
  // Waits for all of it. Throws DeviceError with what went wrong in it.
  void synchronize() const { stream_.synchronize(); }

  // Throws DeviceError naming the op when a tensor is not on this context's device. Empty views
  // are not looked at.
  template <class... Views>
  void require_here(const char* op, const Views&... views) const {
    op_ = op;
    (require_one_here(op, views), ...);
  }
  // Throws DeviceError on a CUDA device, naming the op of the last require_here: it has reached
  // code of the CPU, so it has no CUDA kernel.
  void require_cpu() const;

 private:
  void require_one_here(const char* op, const ConstTensorView& view) const;

  Device device_;
  int threads_;
  bool reference_;
  Arena activations_;
  Arena scratch_;
  RandomState random_;
  Stream stream_;
  std::shared_ptr<gpu::LibraryProducts> library_products_;
  mutable const char* op_ = "this operation";
};

// Copies all elements between tensors of one shape and type, on any two devices, in the order of
// the context's stream: memory of the host may be read when ctx.synchronize() has returned, and may
// be reused when this call has; that of Buffer::staging() when the copy has been waited for. Throws
// ShapeError or TypeError.
void copy(Context& ctx, ConstTensorView from, TensorView to);
// The same in the order of another stream.
void copy(const Stream& stream, ConstTensorView from, TensorView to);

// Sets every bit to zero, in the order of the context's stream.
void set_zero(Context& ctx, TensorView view);

// Where loops of the host run beside a context: on the CPU the context itself, else one of its own
// with as many threads. The context must outlive it.
class HostContext {
 public:
  explicit HostContext(Context& ctx) : ctx_(ctx) {
    if (!ctx.device().is_cpu())
      own_.emplace(Device::cpu(), ContextOptions{.threads = ctx.threads()});
  }
  HostContext(const HostContext&) = delete;
  HostContext& operator=(const HostContext&) = delete;
  Context& get() { return own_ ? *own_ : ctx_; }

 private:
  Context& ctx_;
  std::optional<Context> own_;
};

}  // namespace scgraft
