// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "kernels/dropout.h"
#include "kernels/packing.h"
#include "runtime/context.h"
#include "runtime/tensor_view.h"

namespace scgraft {

// Sum of two table rows per token:  y[t] = a[ia[t]] + drop(b[ib[t]]).
//
//   a   [rows_a, dim], b [rows_b, dim]   f32 or f64, on CUDA f32, bf16 or f16; b may be empty
//                                        (y[t] = a[ia[t]])
//   ia, ib  [tokens]                     i32, inside the tables (checked where batches are built)
//   y   [tokens, dim]                    type of a, overwritten
//   packing  of the tokens; needs cell ids when dropout is active
//
// The tables hold each distinct row once: row-wise functions (norms, small networks) run on them
// before the tokens exist.
// Throws ShapeError or TypeError when something does not fit, ConfigError when p is not in [0, 1).
// Source: gene plus value embedding, as expression transformers start.
void embedding_sum(Context& ctx, ConstTensorView a, ConstTensorView ia, ConstTensorView b,
                   ConstTensorView ib, Dropout dropout, const Packing& packing, TensorView y);

// Tokens sorted by the table row they use: row r is used by tokens[offsets[r]] .. of
// tokens[offsets[r+1]], in ascending order.
//   offsets [rows + 1] i32, tokens [tokens] i32
struct RowUses {
  ConstTensorView offsets;
  ConstTensorView tokens;
};

// dtable[r] = sum over the uses of row r of drop'(dy[token]), in an order that depends on the
// number of uses alone: in token order, on CUDA kPanelRows uses at a time.
//
//   dy      [tokens, dim]  f32 or f64, on CUDA f32, bf16 or f16
//   dtable  [rows, dim]    type of dy, overwritten; a row without uses gets zeros
//
// Pass Dropout{} for table a and the forward dropout for table b. Throws as embedding_sum() does.
void embedding_sum_backward(Context& ctx, ConstTensorView dy, const RowUses& uses, Dropout dropout,
                            const Packing& packing, TensorView dtable);

namespace cuda {  // in embedding_sum.cu; embedding_sum.cc calls these after its checks
void embedding_sum(Context& ctx, ConstTensorView a, ConstTensorView ia, ConstTensorView b,
                   ConstTensorView ib, Dropout dropout, const Packing& packing, TensorView y);
void embedding_sum_backward(Context& ctx, ConstTensorView dy, const RowUses& uses, Dropout dropout,
                            const Packing& packing, TensorView dtable);
}  // namespace cuda

}  // namespace scgraft
