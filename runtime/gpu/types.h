// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

// Opaque to everything but the CUDA runtime; no CUDA header is needed to name a stream.
struct CUstream_st;

// Types that host code and kernels share, with and without a CUDA compiler.
namespace scgraft::gpu {

using StreamHandle = CUstream_st*;

inline constexpr int kWarp = 32;

// Number of blocks of a launch. x may have 2^31 - 1 of them, y and z 65535.
struct Grid {
  int64_t x = 1;
  int64_t y = 1;
  int64_t z = 1;
};

// What one load or store instruction moves.
struct alignas(16) U4 {
  uint32_t x, y, z, w;
};
struct alignas(8) U2 {
  uint32_t x, y;
};
struct alignas(16) F4 {
  float x, y, z, w;
};

}  // namespace scgraft::gpu
