// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "kernels/attention_mask.h"
#include "kernels/packing.h"
#include "runtime/context.h"
#include "runtime/tensor_view.h"

namespace scgraft {

// Attention weights for people to look at, from what a forward pass of attention() without dropout
// read and saved. For query i and one head, and j a key of the prefix or of the query's own cell,
//
//   s_ij = q_i . k_j / sqrt(head_dim)
//   p_ij = exp(s_ij - L_i), exactly 0 where the mask hides key j from query i
//
// The p_ij of a query that sees a key sum to 1 over the prefix and the keys of its cell together;
// those of a query that sees none are all 0. attention_of_queries() reports both kinds of keys, the
// other functions the keys of cells; what is missing from 1 there is attention_prefix_share().
//
// Every function below reduces p while it is formed: no [queries, keys] buffer per cell exists at
// any time. All of them throw ShapeError or TypeError when something does not fit. On a CUDA device
// sums are f32.
struct AttentionPass {
  ConstTensorView q;       // [query tokens, heads * head_dim]  on the CPU f32 or f64, on CUDA f32,
                           // bf16 or f16 with head_dim <= 128
  ConstTensorView k;       // [key tokens, heads * head_dim]    type of q
  ConstTensorView lse;     // [query tokens, heads]             sum_type() of q: L
  const Packing& queries;  // of equal cell count, as attention() takes them
  const Packing& keys;
  int64_t heads;
  AttentionMask mask = {};      // as the forward pass had it. Keys that it hides may hold anything
  AttentionPrefix prefix = {};  // the same; v is not read and may be left out
};

// The weights of some queries of each cell, O(keys) work each. A cell has a column for every key
// that its queries could see, those of the prefix first: with P = prefix.rows() and c the number of
// the cell,
//
//   p[r, a, first_j + c P + x] = p_ij of head a, where i = rows[c, r], first_j is the first key row
//                                of the cell, and j is key x of the prefix when x < P, else key
//                                x - P of the cell
//
//   rows  [cells, n]  i32: positions of queries within their cell; empty: query 0 (the CLS token)
//                     of every cell, n = 1. A position that the cell does not have gives zeros
//   p     [n, heads, key tokens + cells P]  sum_type() of q, overwritten
void attention_of_queries(Context& ctx, const AttentionPass& pass, ConstTensorView rows,
                          TensorView p);

// How much of each query goes to the prefix: share[i, a] = sum over its keys of p_ij of head a,
// O(prefix rows) work each; 0 without a prefix.
//
//   share  [query tokens, heads]  sum_type() of q, overwritten
void attention_prefix_share(Context& ctx, const AttentionPass& pass, TensorView share);

// What each key receives: received[a, first_j + j] = sum_i w_i p_ij of head a over the queries of
// its cell. As much work as the first half of the forward pass.
//
//   weight    [query tokens] or [query tokens, heads]  sum_type() of q; empty: 1 / queries of the
//             cell, so that a cell's row sums to one where every query sees a key and no prefix
//   received  [heads, key tokens]  sum_type() of q, overwritten
void attention_received(Context& ctx, const AttentionPass& pass, ConstTensorView weight,
                        TensorView received);

// The sum over cells and heads, for cells whose tokens are the same genes in the same order:
//
//   map_ij += sum over cells of (sum over heads of p_ij)
//
//   map  [queries of a cell, keys of a cell]  sum_type() of q, accumulated: cells are added one
//        after another, so that cutting a batch between cells changes nothing
// Throws ShapeError too when cells differ in length. Divide by cells * heads for the mean.
void attention_map(Context& ctx, const AttentionPass& pass, TensorView map);

// The keys with the largest weights of every query and head, largest first; of equal scores s_ij
// the one with the lower index comes first.
//
//   p     [query tokens, heads, n]  sum_type() of q, overwritten; 1 <= n <= 32
//   keys  [query tokens, heads, n]  i32: their positions within the cell, overwritten
// Where a query sees fewer than n keys of its cell, p is 0 and the position -1.
void attention_top_keys(Context& ctx, const AttentionPass& pass, TensorView p, TensorView keys);

namespace cuda {  // in attention_export*.cu; attention_export.cc calls these after its checks
void attention_of_queries(Context& ctx, const AttentionPass& pass, ConstTensorView rows,
                          TensorView p);
void attention_prefix_share(Context& ctx, const AttentionPass& pass, TensorView share);
void attention_received(Context& ctx, const AttentionPass& pass, ConstTensorView weight,
                        TensorView received);
void attention_map(Context& ctx, const AttentionPass& pass, TensorView map);
void attention_top_keys(Context& ctx, const AttentionPass& pass, TensorView p, TensorView keys);
}  // namespace cuda

}  // namespace scgraft
