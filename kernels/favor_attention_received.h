// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "kernels/favor_attention.h"

namespace scgraft {

// What each key receives from the queries of its cell: column sums of the matrix A that
// favor_attention() multiplies the values with, whose rows sum to 1, without forming it. With w the
// sum over the queries of a head,
//
//   received[a, m] = sum_n A_nm = psi(k_m) . w     w = sum_n psi(q_n) / (psi(q_n) . mass)
//
// so that the keys of a cell receive as much as it has tokens, at a cost linear in their number.
//
//   q, k, projection, context  as favor_attention() had and left them; the values play no part
//   received  [heads, tokens]  sum_type() of q, overwritten
//
// Features are formed anew. Sums over queries are formed within spans of kFavorSpan tokens of a
// cell, then span by span; scratch holds one [features] per cell, head and span.
// Throws ShapeError or TypeError when something does not fit.
void favor_attention_received(Context& ctx, ConstTensorView q, ConstTensorView k,
                              const Packing& packing, int64_t heads, ConstTensorView projection,
                              FavorOptions options, const FavorContext& context,
                              TensorView received);

namespace cuda {  // in favor_attention_received.cu; favor_attention_received.cc calls it
void favor_attention_received(Context& ctx, ConstTensorView q, ConstTensorView k,
                              const Packing& packing, int64_t heads, ConstTensorView projection,
                              FavorOptions options, const FavorContext& context,
                              TensorView received);
}  // namespace cuda

}  // namespace scgraft
