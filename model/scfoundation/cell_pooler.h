// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <vector>

#include "kernels/packing.h"
#include "model/device_arrays.h"
#include "runtime/context.h"

namespace scgraft {

enum class CellPooling {
  all,  // [S ; T ; largest over the genes ; mean over the genes]: 4 dim numbers
  max,  // the largest over everything: dim numbers
};

// Embeddings of cells from the encoder's rows, where a cell's last two tokens are T and S.
// Source: scFoundation (Hao et al. 2024), its script for cell embeddings, pool types all and max.
class CellPooler {
 public:
  explicit CellPooler(CellPooling pooling) : pooling_(pooling) {}

  int64_t width(int64_t dim) const { return pooling_ == CellPooling::all ? 4 * dim : dim; }
  // x [tokens, dim] f32 or f64, on CUDA f32, bf16 or f16 -> y [cells, width(dim)] of its type,
  // overwritten. Throws DataError for a cell without genes. What backward() needs stays in
  // ctx.activations() and here.
  void forward(Context& ctx, ConstTensorView x, const Packing& packing, TensorView y);
  // dy as y -> dx [tokens, dim], overwritten.
  void backward(Context& ctx, ConstTensorView dy, const Packing& packing, TensorView dx);

 private:
  void lay_out(Context& ctx, const Packing& packing);

  CellPooling pooling_;
  TensorView at_;  // [cells, dim] i32, where the largest are
  // Of `all`, with rows [S of all cells ; T ; largest ; mean] in the middle: which rows of x are
  // genes, S and T; where in the middle the parts of a cell are, and where in y those of the
  // middle; which row of [genes ; S ; T] a token is.
  PreparedArray<int32_t> genes_, ends_, parts_, places_, tokens_;
  std::vector<int32_t> offsets_;  // of the genes of each cell
  DeviceArrays memory_;
  DevicePacking gene_packing_;
};

}  // namespace scgraft
