// SPDX-License-Identifier: Apache-2.0
#include "kernels/vocabulary_cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cast.h"
#include "kernels/linear.h"
#include "kernels/require_tensor.h"
#include "kernels/rows.h"

namespace scgraft {
namespace {

constexpr int64_t kRowsPerUnit = 8;

void check(const char* op, Context& ctx, ConstTensorView h, ConstTensorView weight,
           ConstTensorView bias, ConstTensorView targets, ConstTensorView lse) {
  ctx.require_here(op, h, weight, bias, targets, lse);
  require(h.rank() == 2 && h.dim(1) > 0, op, ": h must be [rows, dim] with dim > 0, got ",
          h.shape());
  require(weight.rank() == 2 && weight.dim(0) > 0 && weight.dim(1) == h.dim(1), op,
          ": weight must be [vocabulary, ", h.dim(1), "], got ", weight.shape());
  const int64_t words = weight.dim(0);
  const DType sums = sum_type(h.dtype());
  const bool cuda = ctx.device().is_cuda();
  require<TypeError>(
      h.dtype() == DType::f32 || (cuda ? sums == DType::f32 : h.dtype() == DType::f64), op,
      ": computes on ", cuda ? "f32, bf16 or f16" : "f32 or f64", ", h is ", h.dtype(),
      "; convert it first");
  for (const ConstTensorView* t : {&weight, &bias})
    require<TypeError>(t->empty() || t->dtype() == h.dtype() || (cuda && t->dtype() == sums), op,
                       ": h is ", h.dtype(), ", weight or bias is ", t->dtype());
  require(bias.empty() || bias.shape() == Shape{words}, op, ": bias must be [", words, "], got ",
          bias.shape());
  require_tensor(op, "targets", targets, {h.dim(0)}, DType::i32);
  require_tensor(op, "lse", lse, {h.dim(0)}, sums);
  if (cuda) return;
  const int32_t* target = targets.as<int32_t>();
  for (int64_t r = 0; r < h.dim(0); ++r)
    require(target[r] < words, op, ": target ", target[r], " of row ", r, " must be below ", words,
            ", the size of the vocabulary");
}

// Room for [rows, kVocabularyChunk] elements, and views of it as [rows, n].
class ChunkRows {
 public:
  ChunkRows(Arena::Scope& scratch, int64_t rows, int64_t words, DType dtype)
      : rows_(rows), memory_(scratch.take({rows * std::min(words, kVocabularyChunk)}, dtype)) {}
  TensorView of(int64_t n) const {
    return {memory_.data(), Shape{rows_, n}, memory_.dtype(), memory_.device()};
  }

 private:
  int64_t rows_;
  TensorView memory_;
};

// The weight chunk by chunk, as products want it.
class ChunkWeight {
 public:
  ChunkWeight(Context& ctx, Arena::Scope& scratch, ConstTensorView weight, DType product)
      : ctx_(ctx), weight_(weight), product_(product) {
    if (weight.dtype() != product)
      converted_ =
          scratch.take({std::min(weight.dim(0), kVocabularyChunk), weight.dim(1)}, product);
  }
  // Goes on to words [begin, end).
  void advance(int64_t begin, int64_t end) {
    rows_ = weight_.rows(begin, end);
    whole_ = end - begin == kVocabularyChunk;
    if (converted_.empty()) return;
    const TensorView to = converted_.rows(0, end - begin);
    cast(ctx_, rows_, to);
    rows_ = to;
  }
  const PackedWeight& packed(PackedFor use) {
    // Chunks of one shape share what packing them takes.
    PackedWeight& weight = packed_[use == PackedFor::forward ? 0 : 1][whole_ ? 0 : 1];
    weight.pack(ctx_, rows_, use, product_);
    return weight;
  }

 private:
  Context& ctx_;
  ConstTensorView weight_;
  DType product_;
  TensorView converted_;
  ConstTensorView rows_;
  bool whole_ = true;
  PackedWeight packed_[2][2];
};

// Calls use(begin, end) for the chunks of a vocabulary, in order.
template <class Use>
void for_each_chunk(int64_t words, Use&& use) {
  for (int64_t begin = 0; begin < words; begin += kVocabularyChunk)
    use(begin, std::min(begin + kVocabularyChunk, words));
}

TensorView part_of(TensorView t, int64_t begin, int64_t end) {
  return t.empty() ? t : t.rows(begin, end);
}
ConstTensorView part_of(ConstTensorView t, int64_t begin, int64_t end) {
  return t.empty() ? t : t.rows(begin, end);
}

// The largest logit of a row and the sum of exponentials beside it, so far.
struct Running {
  double largest = -std::numeric_limits<double>::infinity();
  double sum = 0;
};

// One row of a chunk. The sum is kept in f64, because with very many words it adds small terms to a
// large one.
template <class T>
void fold_row(const T* logits, int64_t n, Running& running) {
  T largest = -std::numeric_limits<T>::infinity();
  for (int64_t v = 0; v < n; ++v) largest = std::max(largest, logits[v]);
  const double before = running.largest;
  running.largest = std::max(before, static_cast<double>(largest));
  // Nothing above -inf yet: any finite reference will do.
  const double reference = std::isinf(running.largest) && running.largest < 0 ? 0 : running.largest;
  running.sum *= std::exp(before - reference);
  const T shift = static_cast<T>(reference);
  for (int64_t v = 0; v < n; ++v) running.sum += static_cast<double>(std::exp(logits[v] - shift));
}

template <class T>
void fold_chunk(Context& ctx, const VocabularyChunk& chunk, ConstTensorView logits,
                Running* running, T* loss, T* lse) {
  const auto in = logits.as<T, 2>();
  const int64_t n = in.dim(1);
  const int32_t* targets = chunk.targets.as<int32_t>();
  const bool last = chunk.first + n == chunk.vocabulary;
  for_row_panels(
      ctx, in.dim(0),
      [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
          if (chunk.first == 0) running[r] = {};
          fold_row(in.row(r), n, running[r]);
          // Until the last chunk loss holds the logit of the target.
          const int64_t at = targets[r] - chunk.first;
          if (0 <= at && at < n) loss[r] = in(r, at);
          if (!last) continue;
          const double log_sum = std::log(running[r].sum);
          lse[r] = static_cast<T>(running[r].largest + log_sum);
          loss[r] =
              targets[r] < 0
                  ? T(0)
                  : static_cast<T>(log_sum - (static_cast<double>(loss[r]) - running[r].largest));
        }
      },
      kRowsPerUnit);
}

template <class T>
void gradients_of_chunk(Context& ctx, const VocabularyChunk& chunk, const T* lse, T scale,
                        Array<T, 2> logits) {
  const int64_t n = logits.dim(1);
  const int32_t* targets = chunk.targets.as<int32_t>();
  for_row_panels(
      ctx, logits.dim(0),
      [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
          T* g = logits.row(r);
          if (targets[r] < 0) {
            std::fill_n(g, n, T(0));
            continue;
          }
          const int64_t at = targets[r] - chunk.first;
          for (int64_t v = 0; v < n; ++v)
            g[v] = scale * (std::exp(g[v] - lse[r]) - (v == at ? T(1) : T(0)));
        }
      },
      kRowsPerUnit);
}

}  // namespace

void vocabulary_cross_entropy(Context& ctx, ConstTensorView h, ConstTensorView weight,
                              ConstTensorView bias, ConstTensorView targets, TensorView loss,
                              TensorView lse) {
  constexpr const char* kOp = "vocabulary_cross_entropy";
  check(kOp, ctx, h, weight, bias, targets, lse);
  ctx.require_here(kOp, loss);
  const int64_t rows = h.dim(0);
  const int64_t words = weight.dim(0);
  const DType sums = sum_type(h.dtype());
  require_tensor(kOp, "loss", loss, {rows}, sums);
  if (rows == 0) return;
  Arena::Scope scratch(ctx.scratch());
  const ChunkRows room(scratch, rows, words, sums);
  ChunkWeight chunks(ctx, scratch, weight, h.dtype());
  const bool cuda = ctx.device().is_cuda();
  const TensorView state = scratch.take({2, rows}, cuda ? DType::f32 : DType::f64);
  for_each_chunk(words, [&](int64_t begin, int64_t end) {
    const TensorView logits = room.of(end - begin);
    chunks.advance(begin, end);
    linear(ctx, h, chunks.packed(PackedFor::forward), part_of(bias, begin, end), {}, nullptr,
           logits);
    const VocabularyChunk chunk{begin, words, targets};
    if constexpr (kBuiltWithCuda) {
      if (cuda) return cuda::fold_logits(ctx, chunk, logits, state, loss, lse);
    }
    static_assert(sizeof(Running) == 2 * sizeof(double));
    visit_real(sums, [&]<class T>(Type<T>) {
      fold_chunk(ctx, chunk, logits, reinterpret_cast<Running*>(state.as<double>()), loss.as<T>(),
                 lse.as<T>());
    });
  });
}

void vocabulary_cross_entropy_backward(Context& ctx, ConstTensorView h, ConstTensorView weight,
                                       ConstTensorView bias, ConstTensorView targets,
                                       ConstTensorView lse, double scale, const Packing* packing,
                                       TensorView dh, TensorView dweight, TensorView dbias,
                                       ConstTensorView factor) {
  constexpr const char* kOp = "vocabulary_cross_entropy_backward";
  check(kOp, ctx, h, weight, bias, targets, lse);
  ctx.require_here(kOp, dh, dweight, dbias, factor);
  const int64_t rows = h.dim(0);
  const int64_t words = weight.dim(0);
  const DType sums = sum_type(h.dtype());
  require_optional(kOp, "dh", dh, h.shape(), h.dtype());
  require(dh.empty() || dh.data() != h.data(), kOp, ": dh must not be h");
  require_optional(kOp, "dweight", dweight, weight.shape(), sums);
  require_optional(kOp, "dbias", dbias, {words}, sums);
  require_optional(kOp, "factor", factor, {1}, DType::f64);
  const bool parameters = !dweight.empty() || !dbias.empty();
  require(!parameters || packing != nullptr, kOp,
          ": dweight and dbias need the packing of the rows, got none");
  if (parameters) require_packed(kOp, "h", *packing, rows);
  if (rows == 0 || (dh.empty() && !parameters)) return;
  Arena::Scope scratch(ctx.scratch());
  const bool half = sums != h.dtype();
  const ChunkRows room(scratch, rows, words, sums);
  const ChunkRows gradient_room = half ? ChunkRows(scratch, rows, words, h.dtype()) : room;
  ChunkWeight chunks(ctx, scratch, weight, h.dtype());
  const TensorView dh_sum = half && !dh.empty() ? scratch.take(dh.shape(), sums) : dh;
  for_each_chunk(words, [&](int64_t begin, int64_t end) {
    const TensorView logits = room.of(end - begin);
    const TensorView g = gradient_room.of(end - begin);
    chunks.advance(begin, end);
    linear(ctx, h, chunks.packed(PackedFor::forward), part_of(bias, begin, end), {}, nullptr,
           logits);
    const VocabularyChunk chunk{begin, words, targets};
    if (ctx.device().is_cuda()) {
      if constexpr (kBuiltWithCuda)
        cuda::logit_gradients(ctx, chunk, logits, lse, scale, factor, g);
    } else {
      const double all = factor.empty() ? scale : scale * *factor.as<double>();
      visit_real(sums, [&]<class T>(Type<T>) {
        gradients_of_chunk<T>(ctx, chunk, lse.as<T>(), static_cast<T>(all), g.as<T, 2>());
      });
    }
    if (!dh.empty())
      linear_backward_input(ctx, g, chunks.packed(PackedFor::backward_input), {}, nullptr,
                            begin > 0, dh_sum);
    if (parameters)
      linear_backward_weight(ctx, h, g, *packing, part_of(dweight, begin, end),
                             part_of(dbias, begin, end));
  });
  if (half && !dh.empty()) cast(ctx, dh_sum, dh);
}

}  // namespace scgraft
