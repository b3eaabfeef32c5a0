// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#include "runtime/config.h"
#include "runtime/dtype.h"
#include "runtime/gpu/types.h"

// The one device header kernels include. Its first half exists twice, with one spelling: as PTX and
// CUDA builtins (gpu_nvcc.cuh) and as plain C++ that runs every CUDA thread on the CPU
// (gpu_emulated.h). The second half, below, is built on the first. Kernels use nothing else: no
// inline PTX, no static shared memory, no float atomics (they would make results depend on order).
//
//   threadIdx, blockIdx, blockDim, gridDim         with .x .y .z
//   UNROLL                                         before a loop of constant length
//   KEEP_LOOP                                      before a loop that would spill if it were
//   unrolled sync_block(), sync_warp(mask) shuffle<T>(v, from), shuffle_xor<T>(v, mask)   int32_t,
//   uint32_t, float; all 32 lanes ballot(predicate) load_vec<V>(p), store_vec<V>(p, v) U4, U2, F4;
//   p aligned to sizeof(V) cp_async16(shared, global, valid), cp_async_commit(),
//   cp_async_wait<newest>() ldmatrix_x4, ldmatrix_x4_trans, ldmatrix_x2, ldmatrix_x2_trans
//   mma_m16n8k16<bf16 | f16>(d, a, b), mma_m16n8k8(d, a, b)
//   pack2<T>, unpack2<T>, to_f32<T>, from_f32<T>
//   exp2_fast, rsqrt_fast, atomic_add, fence
//   shared_memory()
//   launch_kernel(kernel, grid, block, shared_bytes, stream, args...)      on the host
//
// cp.async and m16n8k16 need compute capability 8.0; on 7.5 they trap, and kernels take other
// paths. With g = lane / 4 and t = lane % 4, register i, half h (0 is the low one) of a fragment
// holds
//
//   m16n8k16  a[i]  row g + 8 (i & 1), column 2 t + h + 8 (i >> 1)
//             b[i]  k 2 t + h + 8 i,   n g
//   m16n8k8   a[i]  row g + 8 i,       column 2 t + h
//             b[0]  k 2 t + h,         n g
//   both      d[i]  row g + 8 (i >> 1), column 2 t + (i & 1)
//
// ldmatrix: lane 8 i + j points to row j (16 bytes) of matrix i. Lane l receives in r[i] the
// elements (g, 2 t) and (g, 2 t + 1) of matrix i; with _trans (2 t, g) and (2 t + 1, g).
//
// `Site` parameters name the caller in findings of the emulator; leave them out.
#ifdef __CUDACC__
#include "runtime/gpu/gpu_nvcc.cuh"
#else
#include "runtime/gpu/gpu_emulated.h"
#endif

namespace scgraft::gpu {

// Lane and warp of this thread in a block of one dimension.
__device__ inline int lane() { return static_cast<int>(threadIdx.x % kWarp); }
__device__ inline int warp() { return static_cast<int>(threadIdx.x / kWarp); }

// Sum and maximum over the warp, in a fixed tree, so every lane gets the same bits.
__device__ inline float warp_sum(float v, Site site = Site::current()) {
  UNROLL
  for (int step = kWarp / 2; step > 0; step /= 2) v += shuffle_xor(v, step, site);
  return v;
}
__device__ inline float warp_max(float v, Site site = Site::current()) {
  UNROLL
  for (int step = kWarp / 2; step > 0; step /= 2) v = fmaxf(v, shuffle_xor(v, step, site));
  return v;
}

// Where the 16-byte chunk `chunk` of row `row` is stored in a tile with rows of 128 bytes, so that
// eight rows of one chunk (ldmatrix) and eight chunks of one row lie in different banks.
SCGRAFT_HD constexpr int swizzle(int row, int chunk) { return chunk ^ (row & 7); }

// Cuts dynamic shared memory into arrays. The host takes the same arrays from a null base to learn
// the size of the launch: used() after the last take(). A kernel takes its arrays once; other uses
// of an array are casts of its pointer. The emulator keeps gaps between arrays (multiples of 128
// bytes, which leave bank conflicts as they are) and reports writes to them; used() includes them,
// the limit of a launch does not.
class SharedCarver {
 public:
  SCGRAFT_HD explicit SharedCarver(void* base_or_null) : base_(static_cast<char*>(base_or_null)) {}

  // The next n elements, aligned to `align` bytes (at most 128); null when the base is null.
  template <class T>
  SCGRAFT_HD T* take(int64_t n, int align = 16) {
    const int64_t step = align > static_cast<int>(alignof(T)) ? align : alignof(T);
    int64_t begin = (used_ + step - 1) / step * step;
    if (used_ > 0) {
      begin += kSharedGap;
      if (base_ != nullptr) mark_shared_gap(base_ + used_, begin - used_);
    }
    used_ = begin + n * static_cast<int64_t>(sizeof(T));
    return base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + begin);
  }
  SCGRAFT_HD int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

}  // namespace scgraft::gpu
