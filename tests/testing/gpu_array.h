// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <vector>

#ifdef __CUDACC__
#include <cuda_runtime.h>
#endif

#include "runtime/error.h"

namespace scgraft::gpu {

// n elements that kernels and, once synchronize() has returned, the host may read and write.
// Starts with every byte 0xFF. In emulation nothing lies behind the last byte, so that the address
// sanitizer sees overruns.
template <class T>
class GpuArray {
 public:
  explicit GpuArray(size_t n) : n_(n) {
#ifdef __CUDACC__
    void* data = nullptr;
    require<DeviceError>(cudaMallocManaged(&data, n * sizeof(T)) == cudaSuccess, "no memory");
    data_ = static_cast<T*>(data);
#else
    data_ = static_cast<T*>(std::malloc(n * sizeof(T)));
#endif
    std::memset(static_cast<void*>(data_), 0xff, n * sizeof(T));
  }
  explicit GpuArray(const std::vector<T>& values) : GpuArray(values.size()) {
    std::copy(values.begin(), values.end(), data_);
  }
  ~GpuArray() {
#ifdef __CUDACC__
    cudaFree(data_);
#else
    std::free(data_);
#endif
  }
  GpuArray(const GpuArray&) = delete;
  GpuArray& operator=(const GpuArray&) = delete;

  T* data() { return data_; }
  T operator[](size_t i) const { return data_[i]; }
  size_t size() const { return n_; }

 private:
  T* data_ = nullptr;
  size_t n_;
};

// Waits for kernels and throws what went wrong in them.
inline void synchronize() {
#ifdef __CUDACC__
  const cudaError_t error = cudaDeviceSynchronize();
  require<DeviceError>(error == cudaSuccess, cudaGetErrorString(error));
#endif
}

}  // namespace scgraft::gpu
