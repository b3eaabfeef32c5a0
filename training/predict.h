// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <functional>

#include "training/classification.h"
#include "training/micro_batch.h"

namespace scgraft {

// Tokens worked on at once during inference. On the CPU enough for full matrix tiles and small
// enough for caches; on a CUDA device enough for all its multiprocessors.
inline MicroBatch inference_micro_batch(Context& ctx) {
  return MicroBatch(ctx.device().is_cpu() ? 4096 : 131072);
}

// Called between the chunks of a long list of cells; may throw to stop the work. Empty: nothing.
using BetweenChunks = std::function<void()>;

// Cell embeddings, as the network gives them, for the cells of `views`.
//   embedding  [cells, dim]  f32, overwritten
void embed_cells(Context& ctx, CellNetwork& network, std::span<const CellView> views,
                 TensorView embedding, MicroBatch& micro_batch, const BetweenChunks& between = {});

// Class probabilities, and embeddings when wanted.
//   probabilities  [cells, classes]  f32, overwritten
//   embedding      [cells, dim]      f32, overwritten; empty: not wanted
void predict_cells(Context& ctx, CellClassification& classification,
                   std::span<const CellView> views, TensorView probabilities, TensorView embedding,
                   MicroBatch& micro_batch, const BetweenChunks& between = {});

}  // namespace scgraft
