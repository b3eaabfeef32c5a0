// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <span>

#include "kernels/dropout.h"
#include "kernels/linear_weight.h"
#include "kernels/packing.h"
#include "runtime/context.h"
#include "runtime/tensor_view.h"

namespace scgraft {

// A trainable low-rank term beside a frozen product (LoRA):
//
//   y += scale * (drop(x) A^T) B^T
//
//   a [rank, in], b [out, rank]  type of x; on a CUDA device also f32
// The product is formed in its own accumulator, so that b = 0 leaves y as it was, bit for bit.
// Source: Hu et al. 2021 (LoRA).
struct LowRank {
  ConstTensorView a;
  ConstTensorView b;
  double scale = 1;
  Dropout dropout;
};

// What becomes of a product before it is stored, in this order:
//
//   z = x W^T + bias + low-rank terms
//   y = gelu(z), or z, + residual         or, instead,
//   y = drop(max(z, 0))
//
//   residual  [rows, out]  type of x, or empty; may be y
//   pre       [rows, out]  type of x, or empty; gets z, which the gradient of gelu needs:
//                          activation_backward(gelu, pre, dy, dz). Only with gelu
//
// z is rounded to the type of y before gelu is taken of it, whether it is kept or not. So a
// backward pass may keep it or call linear() again without gelu: the bits are the same, and the
// gradient is that of the function that was computed. Source: torch.nn.GELU (exact form); He et al.
// 2016 for the residual.
//
//   relu  what relu_dropout() makes of z, bit for bit, with this dropout and the packing of the
//         call. Neither gelu nor a residual go with it
//   bits  [rows, (out + 7) / 8]  u8, or empty; as relu_dropout() leaves them
//
// On a CUDA device the tensor-core kernels do this to the sums they hold; elsewhere it is a pass
// over y.
struct LinearEpilogue {
  bool gelu = false;
  TensorView pre = {};
  ConstTensorView residual = {};
  bool relu = false;
  Dropout dropout = {};
  TensorView bits = {};
};

// y = epilogue(x W^T + bias + low-rank terms); the first three make up z above.
//
//   x       [rows, in]   f32 or f64; on a CUDA device f32, or the type of the packed weight
//   weight  packed for `forward`
//   bias    [out]        type of x, or empty; on a CUDA device also f32
//   terms   added in order, each from x
//   packing of the rows; may be null without dropout, needs cell ids with it
//   y       [rows, out]  type of x, on a CUDA device also f32; overwritten
//
// Work is cut in fixed panels of kPanelRows rows: a row's result does not depend on which other
// rows are there. On a CUDA device sums are f32 and results are rounded once; where the product is
// bf16 or f16, f32 rows and the factors of terms are rounded to that type, and so is drop(x) A^T,
// which is formed in the kernel of the product, from the same panel of x, where that fits.
// The gradient by the residual is dy.
// On a CUDA device with LinearBackend::cublaslt the library forms the product, with the bias, and
// with the residual when there is no gelu; what is left is added afterwards, and the result is
// rounded once in between. A row may then depend in its last bits on how many there are.
// Throws ShapeError or TypeError when something does not fit, ConfigError when a dropout is not in
// [0, 1) or, on a CUDA device, when there are more than eight terms.
// Source: torch.nn.Linear; Hu et al. 2021 for the terms.
void linear(Context& ctx, ConstTensorView x, const PackedWeight& weight, ConstTensorView bias,
            std::span<const LowRank> terms, const Packing* packing, TensorView y,
            const LinearEpilogue& epilogue = {});

// dx = dy W + the low-rank terms' share:  scale * drop'((dy B) A).
//
//   dy      [rows, out]  f32 or f64; on a CUDA device f32, or the type of the packed weight
//   weight  packed for `backward_input`
//   dx      [rows, in]   type of dy, on a CUDA device also f32; overwritten, or added to when
//                        `accumulate`
//
// terms and packing as in linear(), and so are errors.
void linear_backward_input(Context& ctx, ConstTensorView dy, const PackedWeight& weight,
                           std::span<const LowRank> terms, const Packing* packing, bool accumulate,
                           TensorView dx);

// Gradients of a low-rank term, accumulated (+=); an empty view is not wanted.
// With G = dy B and U = drop(x) A^T (recomputed, never stored):
//
//   da += scale * G^T drop(x)   [rank, in]        db += scale * dy^T U   [out, rank]
//
//   x   [rows, in], dy [rows, out]   f32 or f64; everything else has their type.
//       On a CUDA device also bf16 or f16: da and db are f32 then, term.a and term.b either
//
// Panels of one cell are summed in order, and cells are added in order: the sums do not depend on
// threads or on how a batch is cut into chunks of cells. packing: of the rows, required; on a CUDA
// device its cu_seqlens lie there.
// Throws as linear() does.
void low_rank_backward(Context& ctx, ConstTensorView x, ConstTensorView dy, const LowRank& term,
                       const Packing& packing, TensorView da, TensorView db);

// Gradients of a trainable weight and bias, accumulated (+=); an empty view is not wanted.
//
//   dweight += dy^T x  [out, in]       dbias += sum over rows of dy  [out]
//
//   x   [rows, in], dy [rows, out]   f32 or f64; the gradients have their type.
//       On a CUDA device also bf16 or f16: the gradients are f32 then
//
// packing and the order of sums as in low_rank_backward(). Throws as linear() does.
void linear_backward_weight(Context& ctx, ConstTensorView x, ConstTensorView dy,
                            const Packing& packing, TensorView dweight, TensorView dbias);

namespace cuda {  // in linear.cu; linear.cc calls these after its checks
// How a 16-bit product with low-rank terms is cut; the result has the same bits in each way.
enum class LowRankPath {
  chosen,   // what panel_rows() says; without terms, backward and beside cublaslt always split
  split,    // a kernel for drop(x) A^T, then one for the product: x is read twice
  panel64,  // one kernel with panels of so many rows, which must fit
  panel128,
};

// Rows of a panel of the one kernel for product and low-rank terms, 64 or 128; 0: split is taken.
//   rows, in      of x
//   rank          of all terms together, each filled up to a multiple of 16
//   capability    75 for 7.5 and so on
//   shared_limit  bytes of shared memory that a block of the device may have
int panel_rows(int64_t rows, int64_t in, int64_t rank, DType type, int capability,
               int64_t shared_limit);

void linear(Context& ctx, ConstTensorView x, const PackedWeight& weight, ConstTensorView bias,
            std::span<const LowRank> terms, const Packing* packing, TensorView y,
            const LinearEpilogue& epilogue, LowRankPath path = LowRankPath::chosen);
void linear_backward_input(Context& ctx, ConstTensorView dy, const PackedWeight& weight,
                           std::span<const LowRank> terms, const Packing* packing, bool accumulate,
                           TensorView dx);
void low_rank_backward(Context& ctx, ConstTensorView x, ConstTensorView dy, const LowRank& term,
                       const Packing& packing, TensorView da, TensorView db);
void linear_backward_weight(Context& ctx, ConstTensorView x, ConstTensorView dy,
                            const Packing& packing, TensorView dweight, TensorView dbias);
}  // namespace cuda

}  // namespace scgraft
