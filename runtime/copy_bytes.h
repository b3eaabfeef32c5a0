// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstring>

#include "runtime/config.h"
#include "runtime/gpu/memory.h"
#include "runtime/tensor_view.h"

namespace scgraft {

inline void require_copyable(const ConstTensorView& from, const TensorView& to) {
  require(from.shape() == to.shape(), "copy: shapes differ, ", from.shape(), " and ", to.shape());
  require<TypeError>(from.dtype() == to.dtype(), "copy: types differ, ", from.dtype(), " and ",
                     to.dtype());
}

// Enqueues the copy; between tensors of the host it is done on return.
inline void copy_bytes(const ConstTensorView& from, const TensorView& to,
                       [[maybe_unused]] gpu::StreamHandle stream) {
  if (from.nbytes() == 0) return;
  if constexpr (kBuiltWithCuda) {
    if (from.device().is_cuda() || to.device().is_cuda())
      return gpu::copy(to.device(), to.data(), from.device(), from.data(), from.nbytes(), stream);
  }
  std::memmove(to.data(), from.data(), static_cast<size_t>(from.nbytes()));
}

}  // namespace scgraft
