// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "model/cell_model.h"
#include "model/scbert/load.h"

namespace scgraft {

// Classifies by all rows of a cell (RowClassifier). The embedding is the mean of the rows after the
// last norm, as it is; the original has none of its own.
class ScbertCells : public CellNetwork, private GeneAttention {
 public:
  explicit ScbertCells(ScbertNetwork& network) : network_(network) {}

  Backbone& backbone() override { return network_; }
  int64_t classes() const override;
  std::vector<Parameter*> head_parameters() override;
  bool unit_embeddings() const override { return false; }
  void forward(Context& ctx, const TokenBatch& batch, bool training, bool save,
               TensorView logits) override;
  void backward(Context& ctx, const TokenBatch& batch, bool training, TensorView dlogits) override;
  void infer(Context& ctx, const TokenBatch& batch, TensorView embedding,
             TensorView logits) override;
  GeneAttention* gene_attention() override { return this; }

 private:
  void received(Context& ctx, const TokenBatch& batch, TensorView received) override;
  // A token is a bin at the position of its gene; bin 0 says that the gene is absent.
  Gene gene(int32_t id, float value) const override {
    return {.token = static_cast<int32_t>(value), .expressed = id > 0};
  }
  TensorView rows_of(const TokenBatch& batch, Context& ctx) const {
    return ctx.activations().take({batch.tokens(), network_.dim()}, DType::f32);
  }

  ScbertNetwork& network_;
  RowClassifier::Saved saved_;
};

// The order of the model's genes, which its checkpoint does not hold, is genes.txt of
// options.dictionaries, or of the model's folder: a name a line, one for each position but the
// last.
//
// Readers take counts (DataError E-VALUES-COUNTS for anything else). Genes are matched exactly, in
// preparation.gene_key or the index of var.
//
// Throws ConfigError (E-EMBEDDING-KIND); ModelError: as load_scbert(), E-GENE-ORDER when genes.txt
// is missing or cannot be the model's.
std::unique_ptr<CellModel> open_scbert_cells(const std::string& folder,
                                             const CellModelOptions& options);

}  // namespace scgraft
