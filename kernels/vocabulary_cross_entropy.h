// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "kernels/packing.h"
#include "runtime/context.h"
#include "runtime/tensor_view.h"

namespace scgraft {

// Words that are worked on at a time. Constant, so that the order of sums over the vocabulary is.
inline constexpr int64_t kVocabularyChunk = 2048;

// Cross entropy of a linear layer over a large vocabulary and its softmax, from the rows before the
// layer:
//
//   logits_rv = h_r . W_v + b_v        lse_r = log sum_v exp(logits_rv)
//   loss_r    = lse_r - logits_r,target_r
//
// A chunk of the vocabulary after another, with an online log-sum-exp: no [rows, vocabulary] buffer
// exists at any time.
//
//   h        [rows, dim]        f32 or f64, on CUDA f32, bf16 or f16
//   weight   [vocabulary, dim]  type of h, on CUDA also f32
//   bias     [vocabulary]       type of h, on CUDA also f32; or empty
//   targets  [rows]             i32; a row with target < 0 is ignored: loss 0 and no gradient
//   loss     [rows]             sum_type() of h, overwritten
//   lse      [rows]             sum_type() of h, overwritten; kept for the backward pass
//
// Products and what follows are those of linear(), and a row's result does not depend on which
// other rows there are. Scratch memory: rows * kVocabularyChunk logits of sum_type(); on the CPU
// beside it a packed chunk of the weight, on CUDA a converted chunk when the weight is not of the
// type of h (and when its rows are no multiple of 16 bytes, one outside of scratch memory).
// Throws ShapeError or TypeError when something does not fit or a target is not in the vocabulary.
// On CUDA the host does not wait to look at targets: such a row gets NaN as its loss and gradient.
// Source: torch.nn.Linear followed by torch.nn.CrossEntropyLoss; Milakov and Gimelshein 2018 for
// the online normaliser.
void vocabulary_cross_entropy(Context& ctx, ConstTensorView h, ConstTensorView weight,
                              ConstTensorView bias, ConstTensorView targets, TensorView loss,
                              TensorView lse);

// Gradients of scale * factor * (the sum of loss over rows). The logits of each chunk are computed
// again; with p_rv = exp(logits_rv - lse_r) and g_rv = scale * factor * (p_rv - [v = target_r]):
//
//   dh_r = sum_v g_rv W_v        dW_v = sum_r g_rv h_r        db_v = sum_r g_rv
//
//   lse      as the forward pass left it
//   packing  of the rows, for dweight and dbias, on a CUDA device with its cu_seqlens there; else
//            may be null
//   dh       [rows, dim]        type of h, overwritten; must not be h; empty when not wanted
//   dweight  [vocabulary, dim], dbias [vocabulary]  sum_type() of h, accumulated (+=) cell by cell
//            as linear_backward_weight() does; empty when frozen
//   factor   [1]  f64, known on the device only; empty: 1
//
// g is rounded to the type of h before it is multiplied (f16: let `scale` hold the loss scale), dh
// is summed in f32 and rounded once. Scratch memory: rows * kVocabularyChunk of sum_type(), with
// 16-bit types as much again in that type and rows * dim in f32. A batch may be cut between cells
// where that is too much; that changes no bit. Throws as vocabulary_cross_entropy() does.
void vocabulary_cross_entropy_backward(Context& ctx, ConstTensorView h, ConstTensorView weight,
                                       ConstTensorView bias, ConstTensorView targets,
                                       ConstTensorView lse, double scale, const Packing* packing,
                                       TensorView dh, TensorView dweight, TensorView dbias,
                                       ConstTensorView factor = {});

// What both directions do with a chunk of logits, words [first, first + n) of `vocabulary`.
struct VocabularyChunk {
  int64_t first;
  int64_t vocabulary;
  ConstTensorView targets;  // [rows]
};

namespace cuda {  // in vocabulary_cross_entropy.cu; vocabulary_cross_entropy.cc calls these between
                  // its products
// Takes logits [rows, n] f32 into the largest logit and the sum of exponentials [2, rows] so far,
// and into loss, which holds the logit of the target until the last chunk.
void fold_logits(Context& ctx, const VocabularyChunk& chunk, ConstTensorView logits,
                 TensorView state, TensorView loss, TensorView lse);
// g [rows, n] in its own type from logits [rows, n] f32; g may be logits.
void logit_gradients(Context& ctx, const VocabularyChunk& chunk, ConstTensorView logits,
                     ConstTensorView lse, double scale, ConstTensorView factor, TensorView g);
}  // namespace cuda

}  // namespace scgraft
