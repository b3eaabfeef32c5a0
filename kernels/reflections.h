// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "runtime/context.h"
#include "runtime/tensor_view.h"

namespace scgraft {

// A chain of Householder reflections as a low-rank term:
//
//   H_1 H_2 ... H_r = I - p^T a,     H_i = I - 2 n_i n_i^T,     n_i = u[:, i] / |u[:, i]|
//
//   u     [in, r]  f32 or f64, on CUDA f32; r even. A column of length below 1e-12 reflects nothing
//   a, p  [r, in]  type of u, overwritten
//
// Two neighbours with v = n_2 - n_1 and s = |v|^2 are one step of rank two,
//
//   H_1 H_2 = I - n_1 a_1^T - v a_2^T,    a_1 = 2 s n_1 + 2 (s - 1) v,    a_2 = 2 (n_1 + v)
//
// in which equal columns make v and a_1 exactly zero, so that of p^T a nothing but zeros is left:
// the identity, bit for bit. With V = (n_1, v) of every pair the chain follows from
//
//   p_k = V_k - sum over j of earlier pairs of p_j (a_j . V_k)
//
// On the CPU all of it is formed in f64 and rounded once. Throws ShapeError or TypeError when
// something does not fit. Source: Yuan et al. 2024 (HRA) for the chain; Bischof and Van Loan 1987
// (WY form) for the recursion.
void reflections(Context& ctx, ConstTensorView u, TensorView a, TensorView p);

// du += the gradient by u, of gradients by a and p.
//
//   u       as the forward pass got it
//   da, dp  [r, in]  type of u
//   du      [in, r]  type of u, added to
//
// Throws as reflections() does.
void reflections_backward(Context& ctx, ConstTensorView u, ConstTensorView da, ConstTensorView dp,
                          TensorView du);

namespace cuda {  // in reflections.cu; reflections.cc calls these after its checks
void reflections(Context& ctx, ConstTensorView u, TensorView a, TensorView p);
void reflections_backward(Context& ctx, ConstTensorView u, ConstTensorView da, ConstTensorView dp,
                          TensorView du);
}  // namespace cuda

}  // namespace scgraft
