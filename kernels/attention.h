// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "kernels/attention_mask.h"
#include "kernels/dropout.h"
#include "kernels/packing.h"
#include "runtime/context.h"
#include "runtime/tensor_view.h"

namespace scgraft {

// Multi-head softmax attention over packed cells, tiled with an online softmax: no [heads, s, s]
// buffer exists at any time. With scale = 1/sqrt(head_dim), for query row i of a cell and head a
//
//   s_ij = scale * q_i . k_j             over the keys j of the prefix and those of the same cell
//                                        that the mask lets i see
//   o_i  = sum_j drop(softmax_j(s_ij)) v_j
//   L_i  = log(sum_j exp(s_ij))
//
//   q    [query tokens, heads * head_dim]  on the CPU f32 or f64, on CUDA f32, bf16 or f16 with
//                                          head_dim <= 128; head a owns columns a*head_dim ...
//   k, v [key tokens, heads * head_dim]    type of q
//   queries, keys   packings of equal cell count; queries may hold fewer rows per cell (the CLS
//                   row only). Query i of a cell has dropout coordinate i, key j has j.
//   o    [query tokens, heads * head_dim]  type of q, overwritten
//   lse  [query tokens, heads]             type of q, f32 for 16-bit types: L, overwritten; kept
//                                          for the backward pass
//   mask, prefix                           kernels/attention_mask.h
//
// With 16-bit types sums are kept in f32; the weights, before they are multiplied with v, are
// rounded to the type of q. A query that sees no key gets o = 0 and L = -inf.
// Throws ShapeError or TypeError when something does not fit, ConfigError when the dropout keeps
// nothing at its resolution of 1/256.
// Source: softmax attention of the original Transformer; tiling as in FlashAttention.
void attention(Context& ctx, ConstTensorView q, ConstTensorView k, ConstTensorView v,
               const Packing& queries, const Packing& keys, int64_t heads, Dropout dropout,
               TensorView o, TensorView lse, const AttentionMask& mask = {},
               const AttentionPrefix& prefix = {});

// Gradients of attention. Overwrites dq, dk, dv and adds to those of the prefix; an empty view
// means that gradient is not wanted and costs nothing. With p_ij = exp(s_ij - L_i), z_ij the
// dropout factor (0 or 1/keep) and D_i = do_i . o_i, over the pairs that the forward pass summed:
//
//   dv_j = sum_i z_ij p_ij do_i        ds_ij = p_ij (z_ij do_i . v_j - D_i)
//   dq_i = scale sum_j ds_ij k_j       dk_j  = scale sum_i ds_ij q_i
//
//   dout [query tokens, heads * head_dim]   o, lse: as the forward pass left them
//
// Every gradient has one owner that adds in one fixed order. Gradients of the prefix are summed per
// cell, then the cells are added in order: a batch and the same cells in several calls give the
// same bits. When only they are wanted, k and v are not read and the cost is queries x prefix rows.
// With 16-bit types sums are kept in f32; z p and ds, before they are multiplied, are rounded to
// the type of q. Throws as attention() does.
void attention_backward(Context& ctx, ConstTensorView q, ConstTensorView k, ConstTensorView v,
                        ConstTensorView o, ConstTensorView lse, ConstTensorView dout,
                        const Packing& queries, const Packing& keys, int64_t heads, Dropout dropout,
                        TensorView dq, TensorView dk, TensorView dv, const AttentionMask& mask = {},
                        const AttentionPrefix& prefix = {},
                        const AttentionPrefixGradient& dprefix = {});

namespace cuda {  // in attention.cu and attention_backward.cu; attention.cc calls these after
                  // checks
void attention(Context& ctx, ConstTensorView q, ConstTensorView k, ConstTensorView v,
               const Packing& queries, const Packing& keys, int64_t heads, Dropout dropout,
               TensorView o, TensorView lse, const AttentionMask& mask,
               const AttentionPrefix& prefix);
void attention_backward(Context& ctx, ConstTensorView q, ConstTensorView k, ConstTensorView v,
                        ConstTensorView o, ConstTensorView lse, ConstTensorView dout,
                        const Packing& queries, const Packing& keys, int64_t heads, Dropout dropout,
                        TensorView dq, TensorView dk, TensorView dv, const AttentionMask& mask,
                        const AttentionPrefix& prefix, const AttentionPrefixGradient& dprefix);
}  // namespace cuda

}  // namespace scgraft
