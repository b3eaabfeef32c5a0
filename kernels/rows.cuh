// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#include "kernels/packing.h"
#include "runtime/dtype.h"
#include "runtime/launch.cuh"

// How kernels cut rows: a warp owns a row, a lane owns pieces of eight neighbouring features of it.
// Eight 16-bit features are one 16-byte load, and eight features share one Philox block. Which lane
// adds which feature depends on dim alone, so the bits of a row do not depend on where it lies.
namespace scgraft::cuda {

inline constexpr int kPiece = 8;
inline constexpr int kWarpPieces = gpu::kWarp * kPiece;  // features of one piece of every lane
inline constexpr int kRowWarps = 4;                      // rows of one block
inline constexpr int kRowThreads = kRowWarps * gpu::kWarp;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Calls f with Type<float>, Type<bf16> or Type<f16>: what device code stores. Sums are f32.
template <class F>
decltype(auto) visit_storage(DType t, F&& f) {
  if (t == DType::f32) return f(Type<float>{});
  if (t == DType::bf16) return f(Type<bf16>{});
  if (t == DType::f16) return f(Type<f16>{});
  throw TypeError(cat("on a GPU this operation computes on f32, bf16 or f16, got ", t));
}

// True when every row of dim features of each tensor can be read in whole, aligned pieces. Null
// stands for a tensor that was left out.
template <class... T>
bool rows_fit_vectors(int64_t dim, const T*... first) {
  return dim % kPiece == 0 && ((reinterpret_cast<uintptr_t>(first) % 16 == 0) && ...);
}

// The grid of a kernel in which each warp owns one row, or one span of `columns` of a row.
inline gpu::Grid row_grid(int64_t rows) { return {.x = ceil_div(rows, kRowWarps)}; }
inline gpu::Grid row_grid(int64_t rows, int64_t dim, int columns) {
  return {.x = ceil_div(rows, kRowWarps), .y = ceil_div(dim, columns)};
}
// The row of the calling warp in such a grid; may lie behind the last one.
__device__ __forceinline__ int64_t row_of_warp() {
  return int64_t{blockIdx.x} * kRowWarps + gpu::warp();
}

// Features [first, first + 8) of a row in f32; zeros behind its end. kVectors: rows_fit_vectors().
template <bool kVectors, class T>
__device__ __forceinline__ void load_piece(const T* row, int first, int dim, float (&v)[kPiece]) {
  if constexpr (kVectors) {
    UNROLL
    for (int i = 0; i < kPiece; ++i) v[i] = 0;
    if (first >= dim) return;
    if constexpr (sizeof(T) == 4) {
      const auto low = gpu::load_vec<gpu::F4>(row + first);
      const auto high = gpu::load_vec<gpu::F4>(row + first + 4);
      v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w;
      v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
    } else {
      const auto bits = gpu::load_vec<gpu::U4>(row + first);
      gpu::unpack2<T>(bits.x, v[0], v[1]);
      gpu::unpack2<T>(bits.y, v[2], v[3]);
      gpu::unpack2<T>(bits.z, v[4], v[5]);
      gpu::unpack2<T>(bits.w, v[6], v[7]);
    }
  } else {
    UNROLL
    for (int i = 0; i < kPiece; ++i) v[i] = first + i < dim ? gpu::to_f32(row[first + i]) : 0.0f;
  }
}

// The way back, rounded once to T; nothing is written behind the end of the row.
template <bool kVectors, class T>
__device__ __forceinline__ void store_piece(T* row, int first, int dim, const float (&v)[kPiece]) {
  if constexpr (kVectors) {
    if (first >= dim) return;
    if constexpr (sizeof(T) == 4) {
      gpu::store_vec(row + first, gpu::F4{v[0], v[1], v[2], v[3]});
      gpu::store_vec(row + first + 4, gpu::F4{v[4], v[5], v[6], v[7]});
    } else {
      gpu::store_vec(row + first, gpu::U4{gpu::pack2<T>(v[0], v[1]), gpu::pack2<T>(v[2], v[3]),
                                          gpu::pack2<T>(v[4], v[5]), gpu::pack2<T>(v[6], v[7])});
    }
  } else {
    UNROLL
    for (int i = 0; i < kPiece; ++i)
      if (first + i < dim) row[first + i] = gpu::from_f32<T>(v[i]);
  }
}

// Element-wise kernels: a thread owns eight neighbouring elements of a flat tensor of n.
inline constexpr int kFlatThreads = 256;
inline gpu::Grid flat_grid(int64_t n) { return {.x = ceil_div(n, kFlatThreads * kPiece)}; }
__device__ __forceinline__ int64_t flat_first() {
  return (int64_t{blockIdx.x} * kFlatThreads + threadIdx.x) * kPiece;
}
// Elements [first, first + 8) of n. kVectors: the tensor is aligned; its end need not be.
template <bool kVectors, class T>
__device__ __forceinline__ void load_flat(const T* data, int64_t first, int64_t n,
                                          float (&v)[kPiece]) {
  if (kVectors && first + kPiece <= n) return load_piece<true>(data + first, 0, kPiece, v);
  load_piece<false>(data + first, 0, static_cast<int>(n - first), v);
}
template <bool kVectors, class T>
__device__ __forceinline__ void store_flat(T* data, int64_t first, int64_t n,
                                           const float (&v)[kPiece]) {
  if (kVectors && first + kPiece <= n) return store_piece<true>(data + first, 0, kPiece, v);
  store_piece<false>(data + first, 0, static_cast<int>(n - first), v);
}

// How a kernel holds a row: kPieces pieces of every lane in registers, or, when 0, none, so that it
// reads the row again in every pass.
template <int kPieces, bool kVectors>
struct RowShape {};

// Calls f with the RowShape for rows of dim features. Rows that do not fit vectors are not worth
// more than one instance.
template <class F>
void visit_row_shape(int64_t dim, bool vectors, F&& f) {
  if (!vectors) return f(RowShape<0, false>{});
  if (dim <= kWarpPieces) return f(RowShape<1, true>{});
  if (dim <= 2 * kWarpPieces) return f(RowShape<2, true>{});
  if (dim <= 4 * kWarpPieces) return f(RowShape<4, true>{});
  if (dim <= 6 * kWarpPieces) return f(RowShape<6, true>{});
  return f(RowShape<0, true>{});
}

// Sums over rows: a lane owns four neighbouring columns, a block owns kPanelColumns of them.
inline constexpr int kLaneColumns = 4;
inline constexpr int kPanelColumns = gpu::kWarp * kLaneColumns;
inline constexpr int kPanelWarps = 16;
inline constexpr int kPanelThreads = kPanelWarps * gpu::kWarp;

// Dynamic shared memory of sum_in_panels() with `warps` warps.
template <int kSums>
int64_t panel_shared_bytes(int warps) {
  gpu::SharedCarver carver(nullptr);
  carver.take<float>(warps > 1 ? int64_t{warps} * kSums * kPanelColumns : 0);
  return carver.used();
}

// Adds the items [begin, end) column by column, kPanelRows at a time and then the panels in order:
// the order of sum_cell_rows() (kernels/rows.h), whatever the number of warps of the block. All
// threads of a block call it with the same range.
//   add(item, sums)   adds the four columns of this lane to sums [kSums][4]
//   done(totals)      called by every lane of the first warp
template <int kSums, class Add, class Done>
__device__ __forceinline__ void sum_in_panels(int64_t begin, int64_t end, Add&& add, Done&& done) {
  const int warps = static_cast<int>(blockDim.x) / gpu::kWarp;
  gpu::SharedCarver carver(gpu::shared_memory());
  float* parts = carver.take<float>(warps > 1 ? int64_t{warps} * kSums * kPanelColumns : 0);
  const auto part_of = [&](int warp, int sum) {
    return parts + (warp * kSums + sum) * kPanelColumns + gpu::lane() * kLaneColumns;
  };
  float total[kSums][kLaneColumns] = {};
  for (int64_t round = begin; round < end; round += warps * kPanelRows) {
    float part[kSums][kLaneColumns] = {};
    const int64_t first = round + gpu::warp() * kPanelRows;
    const int64_t last = first + kPanelRows < end ? first + kPanelRows : end;
    for (int64_t item = first; item < last; ++item) add(item, part);
    if (warps == 1) {
      UNROLL
      for (int s = 0; s < kSums; ++s) {
        UNROLL
        for (int c = 0; c < kLaneColumns; ++c) total[s][c] += part[s][c];
      }
      continue;
    }
    UNROLL
    for (int s = 0; s < kSums; ++s)
      gpu::store_vec(part_of(gpu::warp(), s),
                     gpu::F4{part[s][0], part[s][1], part[s][2], part[s][3]});
    gpu::sync_block();
    if (gpu::warp() == 0) {
      const int64_t left = (end - round + kPanelRows - 1) / kPanelRows;
      const int panels = left < warps ? static_cast<int>(left) : warps;
      for (int panel = 0; panel < panels; ++panel) {
        UNROLL
        for (int s = 0; s < kSums; ++s) {
          const auto sum = gpu::load_vec<gpu::F4>(part_of(panel, s));
          total[s][0] += sum.x, total[s][1] += sum.y;
          total[s][2] += sum.z, total[s][3] += sum.w;
        }
      }
    }
    gpu::sync_block();
  }
  if (gpu::warp() == 0) done(total);
}

// Columns [first, first + 4) of a row, as load_piece() and store_piece() do eight.
template <bool kVectors, class T>
__device__ __forceinline__ void load_columns(const T* row, int first, int dim,
                                             float (&v)[kLaneColumns]) {
  if constexpr (kVectors) {
    UNROLL
    for (int c = 0; c < kLaneColumns; ++c) v[c] = 0;
    if (first >= dim) return;
    if constexpr (sizeof(T) == 4) {
      const auto four = gpu::load_vec<gpu::F4>(row + first);
      v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
    } else {
      const auto bits = gpu::load_vec<gpu::U2>(row + first);
      gpu::unpack2<T>(bits.x, v[0], v[1]);
      gpu::unpack2<T>(bits.y, v[2], v[3]);
    }
  } else {
    UNROLL
    for (int c = 0; c < kLaneColumns; ++c)
      v[c] = first + c < dim ? gpu::to_f32(row[first + c]) : 0.0f;
  }
}
template <bool kVectors, class T>
__device__ __forceinline__ void store_columns(T* row, int first, int dim,
                                              const float (&v)[kLaneColumns]) {
  if constexpr (kVectors) {
    if (first >= dim) return;
    if constexpr (sizeof(T) == 4)
      gpu::store_vec(row + first, gpu::F4{v[0], v[1], v[2], v[3]});
    else
      gpu::store_vec(row + first, gpu::U2{gpu::pack2<T>(v[0], v[1]), gpu::pack2<T>(v[2], v[3])});
  } else {
    UNROLL
    for (int c = 0; c < kLaneColumns; ++c)
      if (first + c < dim) row[first + c] = gpu::from_f32<T>(v[c]);
  }
}

// Sum over the threads of a block, the same bits in all of them: warps by warp_sum(), then the
// warps in order. `shared` has room for one float per warp and may be used again afterwards.
__device__ __forceinline__ float block_sum(float v, float* shared) {
  v = gpu::warp_sum(v);
  if (gpu::lane() == 0) shared[gpu::warp()] = v;
  gpu::sync_block();
  float sum = 0;
  for (int w = 0; w < static_cast<int>(blockDim.x) / gpu::kWarp; ++w) sum += shared[w];
  gpu::sync_block();
  return sum;
}
__device__ __forceinline__ float block_max(float v, float* shared) {
  v = gpu::warp_max(v);
  if (gpu::lane() == 0) shared[gpu::warp()] = v;
  gpu::sync_block();
  float largest = shared[0];
  for (int w = 1; w < static_cast<int>(blockDim.x) / gpu::kWarp; ++w)
    largest = largest < shared[w] ? shared[w] : largest;
  gpu::sync_block();
  return largest;
}

}  // namespace scgraft::cuda
