// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "model/cell_network.h"
#include "training/objective.h"

namespace scgraft {

// Class-weighted cross entropy of the head of a network that classifies cells.
class CellClassification : public Objective {
 public:
  // class_weights [classes], or empty (all 1). Throws when the network has no head.
  CellClassification(CellNetwork& network, std::vector<float> class_weights);

  std::string_view name() const override { return "classification"; }
  double weight(std::span<const CellView> cells) const override;
  void run(Context& ctx, const TokenBatch& batch, bool training, const GradientScale& scale,
           ObjectiveSums& sums) override;

  // Probabilities [cells, classes] of a batch, and the cell embeddings [cells, embedding_dim()]
  // when wanted; both in host memory and overwritten, an empty view is not wanted.
  void predict(Context& ctx, const TokenBatch& batch, TensorView probabilities,
               TensorView embedding);

 private:
  CellNetwork& network_;
  // class_weights_ where the context is; empty when all weigh the same.
  ConstTensorView weights_on(Context& ctx);

  std::vector<float> class_weights_;
  Tensor weights_on_device_;
};

}  // namespace scgraft
