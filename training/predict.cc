// SPDX-License-Identifier: Apache-2.0
#include "training/predict.h"

namespace scgraft {

void embed_cells(Context& ctx, CellNetwork& network, std::span<const CellView> views,
                 TensorView embedding, MicroBatch& micro_batch, const BetweenChunks& between) {
  TokenBatch batch;
  const auto run = [&](const TokenBatch& chunk, size_t begin, size_t end) {
    if (between) between();
    Arena::Scope activations(ctx.activations());
    const TensorView rows = embedding.rows(static_cast<int64_t>(begin), static_cast<int64_t>(end));
    const bool here = ctx.device().is_cpu();
    const TensorView out = here ? rows : activations.take(rows.shape(), rows.dtype());
    network.infer(ctx, chunk, out, {});
    if (!here) copy(ctx, out, rows);
  };
  micro_batch.fit(ctx, views,
                  [&] { for_each_chunk(ctx, views, micro_batch.tokens(), batch, run); });
  ctx.synchronize();
}

void predict_cells(Context& ctx, CellClassification& classification,
                   std::span<const CellView> views, TensorView probabilities, TensorView embedding,
                   MicroBatch& micro_batch, const BetweenChunks& between) {
  TokenBatch batch;
  const auto run = [&](const TokenBatch& chunk, size_t begin, size_t end) {
    if (between) between();
    const auto first = static_cast<int64_t>(begin), last = static_cast<int64_t>(end);
    classification.predict(ctx, chunk, probabilities.rows(first, last),
                           embedding.empty() ? TensorView() : embedding.rows(first, last));
  };
  micro_batch.fit(ctx, views,
                  [&] { for_each_chunk(ctx, views, micro_batch.tokens(), batch, run); });
}

}  // namespace scgraft
