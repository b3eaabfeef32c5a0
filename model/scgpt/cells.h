// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "model/cell_model.h"
#include "model/scgpt/load.h"

namespace scgraft {

// Classifies and embeds by the first row of the last layer, <cls>, the only row that is computed
// there.
class ScgptCells : public CellNetwork {
 public:
  explicit ScgptCells(ScgptNetwork& network) : network_(network) {}

  Backbone& backbone() override { return network_; }
  int64_t classes() const override;
  std::vector<Parameter*> head_parameters() override;
  bool unit_embeddings() const override { return true; }
  void forward(Context& ctx, const TokenBatch& batch, bool training, bool save,
               TensorView logits) override;
  void backward(Context& ctx, const TokenBatch& batch, bool training, TensorView dlogits) override;
  void infer(Context& ctx, const TokenBatch& batch, TensorView embedding,
             TensorView logits) override;

 private:
  ScgptNetwork& network_;
  Classifier::Saved saved_;
};

// Throws ConfigError for an embedding other than the standard one (E-EMBEDDING-KIND), and for
// dictionaries (E-PREPARE): the vocabulary is in the folder.
std::unique_ptr<CellModel> open_scgpt_cells(const std::string& folder,
                                            const CellModelOptions& options);

// As CellModel::preparation().
Preparation scgpt_preparation(const ScgptConfig& config);

}  // namespace scgraft
