// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "kernels/dropout_rows.h"
#include "kernels/rows.cuh"

// Hidden dropout (kernels/dropout.h) in kernels: the same bits as RowDropout draws on the host.
//
//   const RowPlace place = row_place(drop, row);     // once per row; any place when not active
//   if (drop.active) drop_piece(drop, place, first, v);
namespace scgraft::cuda {

__device__ __forceinline__ RowPlace row_place(const DeviceDropout& drop, int64_t row) {
  if (!drop.active) return {};
  const int32_t cell = drop.packing.row_cells[row];
  return {static_cast<uint32_t>(drop.packing.ids[cell]),
          static_cast<uint32_t>(row - drop.packing.offsets[cell])};
}

// The four words with the random bits of features [first, first + 8); first is a multiple of 8.
__device__ __forceinline__ PhiloxCounter piece_bits(const DeviceDropout& drop, RowPlace place,
                                                    int first) {
  return philox({drop.site, place.cell, place.position, static_cast<uint32_t>(first) / 8},
                drop.key);
}

// What becomes of feature `lane` (0..7) of a piece with these bits.
__device__ __forceinline__ float drop_lane(const DeviceDropout& drop, const PhiloxCounter& bits,
                                           int lane, float x) {
  const uint32_t random = (bits[static_cast<size_t>(lane / 2)] >> (16 * (lane % 2))) & 0xffffu;
  return random >= drop.threshold ? x * drop.scale : 0.0f;
}

// Drops features [first, first + 8) of a row.
__device__ __forceinline__ void drop_piece(const DeviceDropout& drop, RowPlace place, int first,
                                           float (&v)[kPiece]) {
  const PhiloxCounter bits = piece_bits(drop, place, first);
  UNROLL
  for (int i = 0; i < kPiece; ++i) v[i] = drop_lane(drop, bits, i, v[i]);
}

}  // namespace scgraft::cuda
