// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <tuple>
#include <type_traits>
#include <utility>

#include "runtime/error.h"

// The device half of gpu.cuh for nvcc: one instruction each, because tests without a GPU do not
// execute this file. Include gpu.cuh.
#define UNROLL _Pragma("unroll")
#define KEEP_LOOP _Pragma("unroll 1")

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define SCGRAFT_SM80 1
#else
#define SCGRAFT_SM80 0
#endif

namespace scgraft::gpu {

struct Site {
  __host__ __device__ static constexpr Site current() { return {}; }
};

inline constexpr int64_t kSharedGap = 0;
__host__ __device__ inline void mark_shared_gap(char*, int64_t) {}

__device__ inline void* shared_memory() {
  extern __shared__ __align__(128) unsigned char scgraft_shared_memory[];
  return scgraft_shared_memory;
}

__device__ inline void sync_block() { __syncthreads(); }
__device__ inline void sync_warp(uint32_t mask = ~0u) { __syncwarp(mask); }

template <class T>
__device__ inline T shuffle(T v, int from, Site = {}) {
  return __shfl_sync(~0u, v, from);
}
template <class T>
__device__ inline T shuffle_xor(T v, int mask, Site = {}) {
  return __shfl_xor_sync(~0u, v, mask);
}
__device__ inline uint32_t ballot(bool predicate) { return __ballot_sync(~0u, predicate); }

template <class V>
__device__ inline V load_vec(const void* p) {
  return *static_cast<const V*>(p);
}
template <class V>
__device__ inline void store_vec(void* p, V v) {
  *static_cast<V*>(p) = v;
}

__device__ inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

__device__ inline void cp_async16([[maybe_unused]] void* shared,
                                  [[maybe_unused]] const void* global,
                                  [[maybe_unused]] bool valid) {
#if SCGRAFT_SM80
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
               "l"(global), "r"(valid ? 16 : 0)
               : "memory");
#else
  __trap();
#endif
}
__device__ inline void cp_async_commit() {
#if SCGRAFT_SM80
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  __trap();
#endif
}
template <int kNewest>
__device__ inline void cp_async_wait() {
#if SCGRAFT_SM80
  asm volatile("cp.async.wait_group %0;" ::"n"(kNewest) : "memory");
#else
  __trap();
#endif
}

__device__ inline void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ inline void ldmatrix_x2(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}
__device__ inline void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}

// d [16, 8] += a [16, 16] b [16, 8], T is bf16 or f16.
template <class T>
__device__ inline void mma_m16n8k16([[maybe_unused]] float (&d)[4],
                                    [[maybe_unused]] const uint32_t (&a)[4],
                                    [[maybe_unused]] const uint32_t (&b)[2]) {
  static_assert(std::is_same_v<T, bf16> || std::is_same_v<T, f16>);
#if SCGRAFT_SM80
  if constexpr (std::is_same_v<T, bf16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#else
  __trap();
#endif
}
// d [16, 8] += a [16, 8] b [8, 8] in f16.
__device__ inline void mma_m16n8k8(float (&d)[4], const uint32_t (&a)[2], const uint32_t (&b)[1]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(b[0]));
}

template <class T>
__device__ inline float to_f32(T v) {
  if constexpr (std::is_same_v<T, bf16>) {
    return __bfloat162float(__ushort_as_bfloat16(v.bits));
  } else if constexpr (std::is_same_v<T, f16>) {
    return __half2float(__ushort_as_half(v.bits));
  } else {
    static_assert(std::is_same_v<T, float>);
    return v;
  }
}
// Rounds to nearest even.
template <class T>
__device__ inline T from_f32(float v) {
  if constexpr (std::is_same_v<T, bf16>) {
    bf16 out;
    out.bits = __bfloat16_as_ushort(__float2bfloat16_rn(v));
    return out;
  } else if constexpr (std::is_same_v<T, f16>) {
    f16 out;
    out.bits = __half_as_ushort(__float2half_rn(v));
    return out;
  } else {
    static_assert(std::is_same_v<T, float>);
    return v;
  }
}

// Two bf16 or f16 in one register, `low` in the low half.
template <class T>
__device__ inline uint32_t pack2(float low, float high) {
  static_assert(std::is_same_v<T, bf16> || std::is_same_v<T, f16>);
  if constexpr (std::is_same_v<T, bf16>) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return __bfloat16_as_ushort(pair.x) | static_cast<uint32_t>(__bfloat16_as_ushort(pair.y)) << 16;
  } else {
    const __half2 pair = __floats2half2_rn(low, high);
    return __half_as_ushort(__low2half(pair)) |
           static_cast<uint32_t>(__half_as_ushort(__high2half(pair))) << 16;
  }
}
template <class T>
__device__ inline void unpack2(uint32_t v, float& low, float& high) {
  T half;
  half.bits = static_cast<uint16_t>(v);
  low = to_f32(half);
  half.bits = static_cast<uint16_t>(v >> 16);
  high = to_f32(half);
}

__device__ inline float exp2_fast(float v) {
  float out;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(v));
  return out;
}
__device__ inline float rsqrt_fast(float v) { return rsqrtf(v); }

__device__ inline uint32_t atomic_add(uint32_t* p, uint32_t v) { return atomicAdd(p, v); }
__device__ inline void fence() { __threadfence(); }

// Enqueues kernel(args...) on `grid` blocks of `block` threads; returns at once when the grid is
// empty. Throws DeviceError when the launch is refused; what goes wrong later is reported by the
// stream.
template <class... P, class... A>
void launch_kernel(void (*kernel)(P...), Grid grid, int block, int64_t shared_bytes,
                   StreamHandle stream, A&&... args) {
  static_assert(sizeof...(P) == sizeof...(A), "one argument per parameter of the kernel");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  require<DeviceError>(grid.x > 0 && grid.x <= 0x7fffffff && grid.y > 0 && grid.y <= 65535 &&
                           grid.z > 0 && grid.z <= 65535,
                       "launch: a grid of ", grid.x, " x ", grid.y, " x ", grid.z,
                       " blocks; at most 2147483647 x 65535 x 65535 are possible");
  const void* function = reinterpret_cast<const void*>(kernel);
  std::tuple<std::remove_const_t<P>...> values(std::forward<A>(args)...);
  cudaError_t error = cudaSuccess;
  // More than this has to be asked for.
  constexpr int64_t kSharedByDefault = 48 * 1024;
  if (shared_bytes > kSharedByDefault)
    error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared_bytes));
  if (error == cudaSuccess) {
    const dim3 blocks(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y),
                      static_cast<unsigned>(grid.z));
    std::apply(
        [&](auto&... value) {
          void* pointers[sizeof...(P) + 1] = {&value...};
          error = cudaLaunchKernel(function, blocks, dim3(static_cast<unsigned>(block)), pointers,
                                   static_cast<size_t>(shared_bytes), stream);
        },
        values);
  }
  if (error == cudaSuccess) return;
  // Errors that end no context are returned by the next call too, unless they are taken here.
  (void)cudaGetLastError();
  throw DeviceError(cat("launch of ", grid.x, " x ", grid.y, " x ", grid.z, " blocks of ", block,
                        " threads with ", shared_bytes,
                        " bytes of shared memory: ", cudaGetErrorString(error)));
}

}  // namespace scgraft::gpu
