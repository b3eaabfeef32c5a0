// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <functional>

#include "training/classification.h"

namespace scgraft {

// Tokens worked on at once during inference: enough for full matrix tiles, small enough for caches.
inline constexpr int64_t kInferenceTokens = 4096;

// Called between the chunks of a long list of cells; may throw to stop the work. Empty: nothing.
using BetweenChunks = std::function<void()>;

// Cell embeddings of a backbone, the CLS row of its last layer, for the cells of `views`.
//   embedding  [cells, dim]  f32, overwritten
void embed_cells(Context& ctx, Backbone& backbone, std::span<const CellView> views,
                 TensorView embedding, const BetweenChunks& between = {});

// Class probabilities, and embeddings when wanted.
//   probabilities  [cells, classes]  f32, overwritten
//   embedding      [cells, dim]      f32, overwritten; empty: not wanted
void predict_cells(Context& ctx, CellClassification& classification,
                   std::span<const CellView> views, TensorView probabilities,
                   TensorView embedding = {}, const BetweenChunks& between = {});

}  // namespace scgraft
