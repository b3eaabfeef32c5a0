// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#include "kernels/dropout_rows.cuh"
#include "kernels/dropout_rows.h"
#include "kernels/gelu.cuh"
#include "kernels/rows.cuh"
#include "runtime/launch.cuh"

// What the products of linear.cu read and write.
namespace scgraft::cuda {

// Columns that a copied operand is padded to: 16 bytes of a 16-bit type.
inline constexpr int64_t kColumnStep = 8;

constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// An operand in memory whose rows begin at 16-byte boundaries, so that kernels load whole chunks of
// 16 bytes. `cols` is the distance between rows; columns behind the true width hold zeros.
template <class T>
struct Operand {
  static constexpr int kChunk = 16 / static_cast<int>(sizeof(T));
  const T* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
};

// A low-rank term as the last step of a product sees it: y += scale * keep(u second^T).
//   u       [rows, rank]
//   second  [rank, n] in f32, [n, rank] in 16 bits: each as its kernel reads it
template <class T>
struct LowRankShare {
  Operand<T> u;
  Operand<T> second;
  float scale = 0;
  DeviceDropout drop;  // of the share; active only in the backward pass
};

// More terms than anybody attaches to one layer; they travel in the parameters of a launch.
inline constexpr int kMostTerms = 8;

// z = [y +] acc + shares + bias, where acc is the product;  y = z, or gelu(z), + residual, or
// y = drop(relu(z)).
//   y [rows, n] of T or f32, dense;  bias [n] of T or f32, or null
//   pre, residual  as y, or null; pre gets z
//   bits [rows, (n + 7) / 8]  of relu, or null
template <class T>
struct Epilogue {
  void* y = nullptr;
  const void* bias = nullptr;
  void* pre = nullptr;
  const void* residual = nullptr;
  int64_t rows = 0;
  int64_t n = 0;
  bool y_is_f32 = false;
  bool bias_is_f32 = false;
  bool accumulate = false;
  bool gelu = false;
  bool relu = false;
  DeviceDropout dropout = {};  // of relu
  uint8_t* bits = nullptr;
  bool vectors = false;  // rows of y, pre and residual begin at 16-byte boundaries
  int terms = 0;
  LowRankShare<T> term[kMostTerms] = {};
};

template <class T>
__device__ __forceinline__ float bias_at(const Epilogue<T>& e, int64_t column) {
  if (e.bias == nullptr) return 0.0f;
  return e.bias_is_f32 ? static_cast<const float*>(e.bias)[column]
                       : gpu::to_f32(static_cast<const T*>(e.bias)[column]);
}

// The random bits of lane `feature % 8` of a Philox block decide whether it is kept.
__device__ __forceinline__ bool keeps(const DeviceDropout& drop, const PhiloxCounter& bits,
                                      int lane) {
  return ((bits[static_cast<size_t>(lane / 2)] >> (16 * (lane % 2))) & 0xffffu) >= drop.threshold;
}

// Zeroes what is dropped of the four features from `feature` on (a multiple of four). What is kept
// is not scaled: the caller multiplies the sum by drop.scale.
__device__ __forceinline__ void drop_four(const DeviceDropout& drop, RowPlace place,
                                          int64_t feature, gpu::F4& v) {
  const PhiloxCounter bits = piece_bits(drop, place, static_cast<int>(feature & ~int64_t{7}));
  const bool upper = (feature & 4) != 0;
  const uint32_t pair[2] = {upper ? bits[2] : bits[0], upper ? bits[3] : bits[1]};
  v.x = (pair[0] & 0xffffu) >= drop.threshold ? v.x : 0.0f;
  v.y = (pair[0] >> 16) >= drop.threshold ? v.y : 0.0f;
  v.z = (pair[1] & 0xffffu) >= drop.threshold ? v.z : 0.0f;
  v.w = (pair[1] >> 16) >= drop.threshold ? v.w : 0.0f;
}

__device__ __forceinline__ uint32_t drop_pair(const DeviceDropout& drop, uint32_t random,
                                              uint32_t pair) {
  const uint32_t low = (random & 0xffffu) >= drop.threshold ? 0xffffu : 0u;
  const uint32_t high = (random >> 16) >= drop.threshold ? 0xffff0000u : 0u;
  return pair & (low | high);
}
// The same for the eight 16-bit features of one chunk: word i of the block belongs to pair i.
__device__ __forceinline__ void drop_eight(const DeviceDropout& drop, RowPlace place,
                                           int64_t feature, gpu::U4& v) {
  const PhiloxCounter bits = piece_bits(drop, place, static_cast<int>(feature));
  v.x = drop_pair(drop, bits[0], v.x);
  v.y = drop_pair(drop, bits[1], v.y);
  v.z = drop_pair(drop, bits[2], v.z);
  v.w = drop_pair(drop, bits[3], v.w);
}

// How the rows of a packed tensor are cut into sums: pieces of `length` rows of one cell. A piece
// does not depend on which other cells there are.
struct PieceRows {
  int64_t begin;
  int64_t end;  // not above begin when the cell has no such piece
};
struct Pieces {
  const int32_t* offsets = nullptr;
  int64_t first_cell = 0;
  int64_t cells = 0;     // from first_cell on
  int64_t per_cell = 0;  // room for the longest cell
  int64_t length = 0;

  int64_t count() const { return cells * per_cell; }
  __device__ __forceinline__ PieceRows rows(int64_t piece) const {
    const int64_t cell = first_cell + piece / per_cell;
    const int64_t begin = offsets[cell] + piece % per_cell * length;
    const int64_t stop = offsets[cell + 1];
    return {begin, begin + length < stop ? begin + length : stop};
  }
};

inline constexpr int kCopyThreads = 256;

// to[i, j] = from[i, j], or from[j, i] when `transposed`, rounded to To; zeros where `from` has no
// such element.
//   from [rows, cols], to [to_rows, to_cols]
// A thread owns four neighbouring elements of `to`, whose rows are a multiple of them. Bound by
// memory: reads and writes everything once.
template <class From, class To>
__global__ void __launch_bounds__(kCopyThreads)
    copy_operand_kernel(const From* from, int64_t rows, int64_t cols, bool transposed, To* to,
                        int64_t to_rows, int64_t to_cols) {
  const int64_t first = (int64_t{blockIdx.x} * kCopyThreads + threadIdx.x) * 4;
  if (first >= to_rows * to_cols) return;
  const int64_t i = first / to_cols;
  const int64_t j = first % to_cols;
  UNROLL
  for (int k = 0; k < 4; ++k) {
    const int64_t row = transposed ? j + k : i;
    const int64_t col = transposed ? i : j + k;
    float value = 0.0f;
    if (row < rows && col < cols) value = gpu::to_f32(from[row * cols + col]);
    to[first + k] = gpu::from_f32<To>(value);
  }
}

}  // namespace scgraft::cuda
