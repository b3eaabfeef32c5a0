// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "runtime/context.h"
#include "runtime/tensor_view.h"

namespace scgraft {

// Orthogonal matrices with blocks on their diagonal, and what they do to the columns of a weight.

inline constexpr int64_t kRotationSize = 256;  // of the largest block

// The blocks, by the Cayley transform:
//
//   Q_b = (I - S_b) (I + S_b)^-1,     S_b = U_b - U_b^T
//
//   skew  [blocks, n (n - 1) / 2]  f32 or f64, on CUDA f32: what is above the diagonal of U_b, row
//                                  by row
//   q     [blocks, n, n]           type of skew, overwritten; 1 <= n <= kRotationSize
//
// Q_b^T Q_b = I, and zeros give the identity, bit for bit. I + S_b is inverted in place by
// Gauss-Jordan elimination without pivoting: S_b being skew, every pivot is 1 or more. On the CPU
// in f64, rounded once; on CUDA in f32, where Q^T Q is off by a few roundings times 1 + |S_b|^2.
// Throws ShapeError or TypeError when something does not fit. Source: Cayley 1846; Qiu et al. 2023
// (OFT); the order of the triangle is that of torch.triu_indices, which Hugging Face PEFT uses.
void cayley(Context& ctx, ConstTensorView skew, TensorView q);

// From the gradient by q. As Q (I + S) = I - S and (I + S)^-1 = (I + Q) / 2,
//
//   dQ = -1/2 (I + Q) dS (I + Q)     M_b = -1/2 (I + Q_b^T) dq_b (I + Q_b^T)
//   dskew[i, j] += M[i, j] - M[j, i]
//
//   q, dq  [blocks, n, n]           f32 or f64, on CUDA f32; q as cayley() left it
//   dskew  [blocks, n (n - 1) / 2]  type of q, added to
//
// Throws as cayley() does.
void cayley_backward(Context& ctx, ConstTensorView q, ConstTensorView dq, TensorView dskew);

// Scales blocks down until |S_b| = sqrt(2) |skew[b]| <= radius (Frobenius norm). One inside stays
// as it is, bit for bit, and so does one that has been scaled: it ends 1e-5 of the radius inside.
//
//   skew  [blocks, any]  f32 or f64, on CUDA f32; in place
//
// Throws TypeError, or ShapeError for a negative radius. Source: Qiu et al. 2023 (COFT).
void bound_rotation(Context& ctx, double radius, TensorView skew);

// y = w blockdiag(Q)^T:     y[o, b n + i] = sum over j of w[o, b n + j] q[b, i, j]
//
//   w, y  [out, blocks * n]  f32 or f64, on CUDA f32; y overwritten and not w
//   q     [blocks, n, n]     type of w
//
// Sums over j have one fixed order. Throws as cayley() does.
void rotate_columns(Context& ctx, ConstTensorView w, ConstTensorView q, TensorView y);

// The gradient by q:     dq[b, i, j] = sum over o of dy[o, b n + i] w[o, b n + j]
//
//   w, dy  [out, blocks * n]  as above
//   dq     [blocks, n, n]     type of w, overwritten
//
// Sums over o have one fixed order. Throws as cayley() does.
void rotate_columns_backward(Context& ctx, ConstTensorView w, ConstTensorView dy, TensorView dq);

namespace cuda {  // in rotation.cu; rotation.cc calls these after its checks
void cayley(Context& ctx, ConstTensorView skew, TensorView q);
void cayley_backward(Context& ctx, ConstTensorView q, ConstTensorView dq, TensorView dskew);
void bound_rotation(Context& ctx, double radius, TensorView skew);
void rotate_columns(Context& ctx, ConstTensorView w, ConstTensorView q, TensorView y);
void rotate_columns_backward(Context& ctx, ConstTensorView w, ConstTensorView dy, TensorView dq);
}  // namespace cuda

// What bound_rotation() scales to, as a part of the radius: far enough inside that another order of
// the sum finds the block inside too.
inline constexpr double kInsideRadius = 1 - 1e-5;

// Where element (i, j), i < j, of the upper triangle of an n x n block lies in its row of skew.
constexpr int64_t triangle_index(int64_t i, int64_t j, int64_t n) {
  return i * (2 * n - i - 1) / 2 + j - i - 1;
}

}  // namespace scgraft
