// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cmath>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#include "runtime/dtype.h"
#include "runtime/gpu/emulator.h"
#include "runtime/gpu/streams_emulated.h"
#include "runtime/gpu/types.h"

// The device half of gpu.cuh without a CUDA compiler: plain functions over the emulator, and no
// header of the CUDA toolkit. Include gpu.cuh. Reads and writes of memory are in this file and not
// in the emulator, so that sanitizers see them as accesses of the CUDA thread.
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define UNROLL
#define KEEP_LOOP

#define threadIdx (::scgraft::gpu::emulated::this_thread->thread)
#define blockIdx (::scgraft::gpu::emulated::this_thread->block)
#define blockDim (::scgraft::gpu::emulated::this_thread->block_dim)
#define gridDim (::scgraft::gpu::emulated::this_thread->grid_dim)

namespace scgraft::gpu {

// Bytes between arrays in shared memory; 128 bytes are one turn through the banks.
inline constexpr int64_t kSharedGap = 128;
inline void mark_shared_gap(char* begin, int64_t nbytes) {
  emulated::mark_shared_gap(begin, nbytes);
}

inline void* shared_memory() { return emulated::shared_memory(); }

inline void sync_block(Site site = Site::current()) { emulated::sync_block(site); }
inline void sync_warp(uint32_t mask = ~0u, Site site = Site::current()) {
  emulated::sync_warp(mask, site);
}

template <class T>
T shuffle(T v, int from, Site site = Site::current()) {
  static_assert(std::is_same_v<T, int32_t> || std::is_same_v<T, uint32_t> ||
                std::is_same_v<T, float>);
  return std::bit_cast<T>(emulated::shuffle(std::bit_cast<uint32_t>(v), from, site));
}
template <class T>
T shuffle_xor(T v, int mask, Site site = Site::current()) {
  static_assert(std::is_same_v<T, int32_t> || std::is_same_v<T, uint32_t> ||
                std::is_same_v<T, float>);
  return std::bit_cast<T>(emulated::shuffle_xor(std::bit_cast<uint32_t>(v), mask, site));
}
inline uint32_t ballot(bool predicate, Site site = Site::current()) {
  return emulated::ballot(predicate, site);
}

template <class V>
V load_vec(const void* p, Site site = Site::current()) {
  emulated::require_aligned("load_vec", p, sizeof(V), site);
  V v;
  std::memcpy(&v, p, sizeof(V));
  return v;
}
template <class V>
void store_vec(void* p, V v, Site site = Site::current()) {
  emulated::require_aligned("store_vec", p, sizeof(V), site);
  std::memcpy(p, &v, sizeof(V));
}

inline void cp_async16(void* shared, const void* global, bool valid, Site site = Site::current()) {
  emulated::issue_copy(shared, global, valid, site);
  // Sanitizers blame a bad source on the line that names it; the value is taken when the copy is
  // waited for.
  if (valid) {
    const auto* source = static_cast<const volatile unsigned char*>(global);
    (void)source[0];
    (void)source[15];
  }
  std::memset(shared, 0xff, 16);
}
inline void cp_async_commit() { emulated::commit_copies(); }
template <int kNewest>
void cp_async_wait() {
  emulated::AsyncCopy copy;
  while (emulated::finish_copy(kNewest, copy)) {
    U4 value{};
    if (copy.global != nullptr) std::memcpy(&value, copy.global, sizeof value);
    std::memcpy(copy.shared, &value, sizeof value);
  }
}

namespace emulated {

// Each lane reads the row it points to itself, so that sanitizers blame the right lane.
template <int kMatrices>
void load_matrices(uint32_t (&r)[kMatrices], const void* row, bool transposed, const Site& site) {
  MatrixLoad mine{row, {}, {}};
  if (this_thread->lane < 8 * kMatrices) {
    require_aligned("ldmatrix", row, 16, site);
    require_shared("ldmatrix", row, 16, site);
    std::memcpy(mine.data, row, 16);
  }
  ldmatrix(mine, kMatrices, transposed, site);
  std::memcpy(r, mine.registers, sizeof r);
}

}  // namespace emulated

inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, Site site = Site::current()) {
  emulated::load_matrices(r, row, false, site);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, Site site = Site::current()) {
  emulated::load_matrices(r, row, true, site);
}
inline void ldmatrix_x2(uint32_t (&r)[2], const void* row, Site site = Site::current()) {
  emulated::load_matrices(r, row, false, site);
}
inline void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row, Site site = Site::current()) {
  emulated::load_matrices(r, row, true, site);
}

// d [16, 8] += a [16, 16] b [16, 8], T is bf16 or f16; products are exact, sums are f32.
template <class T>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                  Site site = Site::current()) {
  static_assert(std::is_same_v<T, bf16> || std::is_same_v<T, f16>);
  emulated::mma(std::is_same_v<T, bf16> ? emulated::Fragment::m16n8k16_bf16
                                        : emulated::Fragment::m16n8k16_f16,
                d, a, b, site);
}
// d [16, 8] += a [16, 8] b [8, 8] in f16.
inline void mma_m16n8k8(float (&d)[4], const uint32_t (&a)[2], const uint32_t (&b)[1],
                        Site site = Site::current()) {
  emulated::mma(emulated::Fragment::m16n8k8_f16, d, a, b, site);
}

template <class T>
float to_f32(T v) {
  return static_cast<float>(v);
}
// Rounds to nearest even.
template <class T>
T from_f32(float v) {
  return T(v);
}

// Two bf16 or f16 in one register, `low` in the low half.
template <class T>
uint32_t pack2(float low, float high) {
  static_assert(std::is_same_v<T, bf16> || std::is_same_v<T, f16>);
  return T(low).bits | static_cast<uint32_t>(T(high).bits) << 16;
}
template <class T>
void unpack2(uint32_t v, float& low, float& high) {
  T half;
  half.bits = static_cast<uint16_t>(v);
  low = static_cast<float>(half);
  half.bits = static_cast<uint16_t>(v >> 16);
  high = static_cast<float>(half);
}

inline float exp2_fast(float v) { return std::exp2(v); }
inline float rsqrt_fast(float v) { return 1.0f / std::sqrt(v); }

inline uint32_t atomic_add(uint32_t* p, uint32_t v) {
  return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
}
inline void fence() { emulated::fence(); }

// Runs kernel(args...) on `grid` blocks of `block` threads, after the copies that the stream holds,
// and returns when it has ended; at once when the grid is empty. Throws DeviceError when the launch
// is refused or the emulator found a mistake.
template <class... P, class... A>
void launch_kernel(void (*kernel)(P...), Grid grid, int block, int64_t shared_bytes,
                   StreamHandle stream, A&&... args) {
  static_assert(sizeof...(P) == sizeof...(A), "one argument per parameter of the kernel");
  struct Call {
    void (*kernel)(P...);
    std::tuple<std::remove_const_t<P>...> values;
  } call{kernel, {std::forward<A>(args)...}};
  emulated::run_pending(stream);
  emulated::launch(
      reinterpret_cast<const void*>(kernel), grid, block, shared_bytes,
      [](void* c) {
        const Call& it = *static_cast<const Call*>(c);
        std::apply(it.kernel, it.values);
      },
      &call);
}

}  // namespace scgraft::gpu
