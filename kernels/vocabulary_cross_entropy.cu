// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <limits>

#include "kernels/require_tensor.h"
#include "kernels/rows.cuh"
#include "kernels/vocabulary_cross_entropy.h"

namespace scgraft::cuda {
namespace {

// A chunk of the vocabulary as an argument of a kernel.
struct Chunk {
  const float* logits;  // [rows, n]
  const int32_t* targets;
  int64_t rows;
  int n;
  int first;
  int vocabulary;

  Chunk(const VocabularyChunk& chunk, ConstTensorView chunk_logits)
      : logits(chunk_logits.as<float>()),
        targets(chunk.targets.as<int32_t>()),
        rows(chunk_logits.dim(0)),
        n(static_cast<int>(chunk_logits.dim(1))),
        first(static_cast<int>(chunk.first)),
        vocabulary(static_cast<int>(chunk.vocabulary)) {}
};

// A warp owns a row, a lane pieces of eight neighbouring words: two passes, of which the second
// reads from cache. Memory: reads the chunk once, from L2 where it fits; that bounds it.
//   state [2, rows]: largest logits and sums of exponentials, overwritten by the first chunk
template <bool kVectors>
__global__ void __launch_bounds__(kRowThreads)
    fold_logits_kernel(Chunk chunk, float* state, float* loss, float* lse) {
  const int64_t row = row_of_warp();
  if (row >= chunk.rows) return;
  const float* logits = chunk.logits + row * chunk.n;
  const int begin = gpu::lane() * kPiece;
  float before = -std::numeric_limits<float>::infinity(), sum_before = 0;
  float at_target = std::numeric_limits<float>::quiet_NaN();  // of a target that is no word
  // Only the lane that writes them reads them; the others get the largest by warp_max().
  if (chunk.first > 0 && gpu::lane() == 0) {
    before = state[row];
    sum_before = state[chunk.rows + row];
    at_target = loss[row];
  }
  float largest = before;
  for (int first = begin; first < chunk.n; first += kWarpPieces) {
    float v[kPiece];
    load_piece<kVectors>(logits, first, chunk.n, v);
    UNROLL
    for (int i = 0; i < kPiece; ++i)
      if (first + i < chunk.n) largest = fmaxf(largest, v[i]);
  }
  largest = gpu::warp_max(largest);
  // Nothing above -inf yet: any finite reference will do.
  const float reference = largest == -std::numeric_limits<float>::infinity() ? 0.0f : largest;
  float sum = 0;
  for (int first = begin; first < chunk.n; first += kWarpPieces) {
    float v[kPiece];
    load_piece<kVectors>(logits, first, chunk.n, v);
    UNROLL
    for (int i = 0; i < kPiece; ++i)
      if (first + i < chunk.n) sum += expf(v[i] - reference);
  }
  sum = sum_before * expf(before - reference) + gpu::warp_sum(sum);
  if (gpu::lane() != 0) return;
  const int target = chunk.targets[row];
  const int at = target - chunk.first;
  if (0 <= at && at < chunk.n) at_target = logits[at];
  if (chunk.first + chunk.n < chunk.vocabulary) {
    state[row] = largest;
    state[chunk.rows + row] = sum;
    loss[row] = at_target;
    return;
  }
  lse[row] = largest + logf(sum);
  loss[row] = target < 0 ? 0.0f : logf(sum) - (at_target - largest);
}

// A warp owns a span of eight pieces of a row. Memory: reads the chunk once and writes g once;
// that bounds it. g may be the logits.
constexpr int kGradientWords = 8 * kWarpPieces;

template <class T, bool kVectors>
__global__ void __launch_bounds__(kRowThreads)
    logit_gradients_kernel(Chunk chunk, const float* lse, double scale, const double* factor,
                           T* g) {
  const int64_t row = row_of_warp();
  if (row >= chunk.rows) return;
  const int target = chunk.targets[row];
  const auto all = static_cast<float>(factor == nullptr ? scale : scale * *factor);
  // Of a target that is no word all are NaN.
  const float shift =
      target < chunk.vocabulary ? lse[row] : std::numeric_limits<float>::quiet_NaN();
  const int span = static_cast<int>(blockIdx.y) * kGradientWords;
  const int end = span + kGradientWords < chunk.n ? span + kGradientWords : chunk.n;
  for (int first = span + gpu::lane() * kPiece; first < end; first += kWarpPieces) {
    float v[kPiece];
    load_piece<kVectors>(chunk.logits + row * chunk.n, first, chunk.n, v);
    UNROLL
    for (int i = 0; i < kPiece; ++i) {
      const float p = expf(v[i] - shift);
      v[i] = target < 0 ? 0.0f : all * (p - (chunk.first + first + i == target ? 1.0f : 0.0f));
    }
    store_piece<kVectors>(g + row * chunk.n, first, chunk.n, v);
  }
}

}  // namespace

void fold_logits(Context& ctx, const VocabularyChunk& chunk, ConstTensorView logits,
                 TensorView state, TensorView loss, TensorView lse) {
  const Chunk a(chunk, logits);
  const bool vectors = rows_fit_vectors(a.n, a.logits);
  launch(ctx, "vocabulary_cross_entropy",
         vectors ? fold_logits_kernel<true> : fold_logits_kernel<false>, row_grid(a.rows),
         kRowThreads, 0, a, state.as<float>(), loss.as<float>(), lse.as<float>());
}

void logit_gradients(Context& ctx, const VocabularyChunk& chunk, ConstTensorView logits,
                     ConstTensorView lse, double scale, ConstTensorView factor, TensorView g) {
  const Chunk a(chunk, logits);
  visit_storage(g.dtype(), [&]<class T>(Type<T>) {
    const bool vectors = rows_fit_vectors(a.n, a.logits, g.as<T>());
    launch(ctx, "vocabulary_cross_entropy_backward",
           vectors ? logit_gradients_kernel<T, true> : logit_gradients_kernel<T, false>,
           row_grid(a.rows, a.n, kGradientWords), kRowThreads, 0, a, lse.as<float>(), scale,
           data_or_null<double>(factor), g.as<T>());
  });
}

}  // namespace scgraft::cuda
