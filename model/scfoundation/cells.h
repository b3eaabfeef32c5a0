// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "model/cell_model.h"
#include "model/scfoundation/cell_pooler.h"
#include "model/scfoundation/load.h"

namespace scgraft {

// Classifies by [S ; T ; largest ; mean] of the encoder's rows of a cell (PartsClassifier). The
// embedding is the same four parts, or the largest over all rows (CellEmbedding::max), as it is.
// Source: scFoundation's script for cell embeddings, scPEFT's classifier of cells.
class ScfoundationCells : public CellNetwork {
 public:
  ScfoundationCells(ScfoundationNetwork& network, CellEmbedding embedding)
      : network_(network),
        embedding_(embedding == CellEmbedding::max ? CellPooling::max : CellPooling::all) {}

  Backbone& backbone() override { return network_; }
  int64_t classes() const override;
  std::vector<Parameter*> head_parameters() override;
  int64_t embedding_dim() override {
    return (embedding_ == CellPooling::max ? largest_ : parts_).width(network_.dim());
  }
  bool unit_embeddings() const override { return false; }
  void forward(Context& ctx, const TokenBatch& batch, bool training, bool save,
               TensorView logits) override;
  void backward(Context& ctx, const TokenBatch& batch, bool training, TensorView dlogits) override;
  void infer(Context& ctx, const TokenBatch& batch, TensorView embedding,
             TensorView logits) override;

 private:
  TensorView rows_of(const TokenBatch& batch, Context& ctx) const {
    return ctx.activations().take({batch.tokens(), network_.dim()}, DType::f32);
  }
  TensorView parts_of(const TokenBatch& batch, Context& ctx) const {
    return ctx.activations().take({batch.cells(), parts_.width(network_.dim())}, DType::f32);
  }

  ScfoundationNetwork& network_;
  CellPooling embedding_;
  CellPooler parts_{CellPooling::all}, largest_{CellPooling::max};
  PartsClassifier::Saved saved_;
};

// Runs the encoder of the branch "cell"; the decoder is not loaded. The order of the model's genes,
// which its checkpoint does not hold, is the published table OS_scRNA_gene_index.19264.tsv of
// options.dictionaries, or of the model's folder.
//
// Readers take counts (DataError E-VALUES-COUNTS for anything else). Genes are matched exactly, in
// preparation.gene_key or the index of var.
//
// Throws ConfigError (E-EMBEDDING-KIND); ModelError: as load_scfoundation() and
// read_scfoundation_genes(), E-GENE-ORDER when the table is missing.
std::unique_ptr<CellModel> open_scfoundation_cells(const std::string& folder,
                                                   const CellModelOptions& options);

}  // namespace scgraft
