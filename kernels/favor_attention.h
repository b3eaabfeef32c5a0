// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "kernels/packing.h"
#include "runtime/context.h"
#include "runtime/tensor_view.h"

namespace scgraft {

// Over which keys the shift of the key features is taken.
enum class FavorStabiliser {
  cell,   // keys and heads of one cell: results do not depend on what else is in the batch
  batch,  // of the whole batch, as the published code does
};

// What features are made of.
enum class FavorKernel {
  softmax,  // exponentials: softmax attention is approximated
  relu,     // max(u, 0), "generalized attention" with the published code's default function
};

struct FavorOptions {
  FavorStabiliser stabiliser = FavorStabiliser::cell;  // of softmax features
  FavorKernel kernel = FavorKernel::softmax;
};

// What every query of a cell reads of its keys; the forward pass writes it, the backward pass reads
// it. Sums are f32 for 16-bit types, else of the type of q.
//
//   sums     [cells, heads, features, head_dim]  sum_m psi(k_m)^T v_m
//   mass     [cells, heads, features]            sum_m psi(k_m)
//   largest  [cells]                             the stabiliser, -inf where there are no keys;
//                                                0 for relu features, which have none
//   peak     [cells] i64                         where in the cell it is: (token * heads + head) *
//                                                features + feature; -1 where it is in another cell
//                                                or there is none
struct FavorContext {
  TensorView sums, mass, largest, peak;

  // For tensors of type q, in an arena.
  static FavorContext take(Arena& arena, int64_t cells, int64_t heads, int64_t features,
                           int64_t head_dim, DType q);
};

// FAVOR+ attention over packed cells: softmax attention approximated by positive random features,
// at a cost linear in the length of a cell. With c = head_dim^(-1/4) and Omega = projection, for
// the tokens of a cell and each head
//
//   u = (c x) Omega^T       s(x) = |c x|^2 / 2
//   psi(q) = exp(u - s(q) - max_j u_j) + 1e-4       the maximum of the row
//   psi(k) = exp(u - s(k) - stabiliser) + 1e-4      the largest u of the keys (FavorStabiliser)
//   out_n  = psi(q_n) (sum_m psi(k_m)^T v_m) / (psi(q_n) . sum_m psi(k_m))
//
// The factor features^(-1/2) of the published features cancels in out and is left out. With
// FavorKernel::relu, of queries and keys alike,
//
//   psi(x) = max(u, 0) + 1e-3
//
// where the identity as Omega gives the published features without a projection, max(c x, 0) +
// 1e-3.
//
//   q, k, v     [tokens, heads * head_dim]  on the CPU f32 or f64, on CUDA f32, bf16 or f16 with
//                                           head_dim <= 128; head a owns columns a*head_dim ...
//   projection  [features, head_dim]        type of q, f32 for 16-bit types; any number of features
//   out         [tokens, heads * head_dim]  type of q, overwritten
//   context     overwritten
//
// No feature is stored beyond a panel of tokens. Sums over keys are formed panel by panel within
// spans of kFavorSpan tokens of a cell, then span by span; scratch holds one [features, head_dim]
// per cell, head and span. With 16-bit types features and sums are f32, only out is rounded.
// Throws ShapeError or TypeError when something does not fit.
// Source: Choromanski et al., Rethinking Attention with Performers, as in scBERT.
void favor_attention(Context& ctx, ConstTensorView q, ConstTensorView k, ConstTensorView v,
                     const Packing& packing, int64_t heads, ConstTensorView projection,
                     FavorOptions options, TensorView out, const FavorContext& context);

// Gradients of favor_attention. Overwrites dq, dk, dv; an empty view means that gradient is not
// wanted. With n = psi(q) . mass and g = exp(...) dpsi, where exp(...) is the part of psi that is
// not constant,
//
//   dpsi(q_i) = (sums dout_i - (dout_i . out_i) mass) / n_i
//   dsums     = sum_i psi(q_i)^T dout_i / n_i     dmass = -sum_i psi(q_i) (dout_i . out_i) / n_i
//   dpsi(k_m) = dsums v_m + dmass                 dv_m  = psi(k_m) dsums
//   dx        = c (g Omega - (sum_j g_j) c x)     for x = q_i and k_m
//
// The maxima carry gradient: minus the sum of g over what was shifted goes to the u that is the
// largest. Without the 1e-4 those sums would be zero. Among equal ones the first is taken: the
// first feature of a query; of the keys the first in the order of `peak`, in a batch in the first
// cell. (PyTorch shares it among equal keys.) With 16-bit types sums are f32; dk of the key that
// has the stabiliser is rounded twice.
//
// Of relu features there are neither s(x) nor maxima: dx = c g Omega with g = dpsi where u > 0,
// else 0.
//
//   dout, out   [tokens, heads * head_dim]  out and context as the forward pass left them
void favor_attention_backward(Context& ctx, ConstTensorView q, ConstTensorView k, ConstTensorView v,
                              ConstTensorView out, ConstTensorView dout, const Packing& packing,
                              int64_t heads, ConstTensorView projection, FavorOptions options,
                              const FavorContext& context, TensorView dq, TensorView dk,
                              TensorView dv);

// In favor_attention.cu and favor_attention_backward.cu; favor_attention.cc calls these after its
// checks.
namespace cuda {
void favor_attention(Context& ctx, ConstTensorView q, ConstTensorView k, ConstTensorView v,
                     const Packing& packing, int64_t heads, ConstTensorView projection,
                     FavorOptions options, TensorView out, const FavorContext& context);
void favor_attention_backward(Context& ctx, ConstTensorView q, ConstTensorView k, ConstTensorView v,
                              ConstTensorView out, ConstTensorView dout, const Packing& packing,
                              int64_t heads, ConstTensorView projection, FavorOptions options,
                              const FavorContext& context, TensorView dq, TensorView dk,
                              TensorView dv);
}  // namespace cuda

// Tokens of a cell whose sums one unit of work forms.
inline constexpr int64_t kFavorSpan = 16 * kPanelRows;

}  // namespace scgraft
