// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cuda_runtime_api.h>

#include "runtime/error.h"

// Included by sources of a CUDA build only.
namespace scgraft::gpu {

// Throws DeviceError with the runtime's words when a call of the CUDA runtime failed.
template <class... Parts>
void require_cuda(cudaError_t error, const Parts&... what) {
  if (error == cudaSuccess) return;
  // Errors that end no context are returned by the next call too, unless they are taken here.
  (void)cudaGetLastError();
  throw DeviceError(
      cat(what..., ": ", cudaGetErrorString(error), " (", cudaGetErrorName(error), ")"));
}

}  // namespace scgraft::gpu
