// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "model/cell_model.h"
#include "model/geneformer/load.h"

namespace scgraft {

// Classifies by the pooled first row of the last layer, as BertForSequenceClassification: of V1
// that of the gene of the highest rank, of V2 <cls>. Embeddings are means over the genes' rows,
// <cls> and <eos> left out, or the first row; they are used as they are. Source: Geneformer's
// classifier and embedding extractor, whose layer -1 is the one before the last.
class GeneformerCells : public CellNetwork {
 public:
  // specials: whether cells begin with <cls> and end with <eos>.
  GeneformerCells(GeneformerNetwork& network, CellEmbedding embedding, bool specials)
      : network_(network), embedding_(embedding), specials_(specials) {}

  Backbone& backbone() override { return network_; }
  int64_t classes() const override;
  std::vector<Parameter*> head_parameters() override;
  bool unit_embeddings() const override { return false; }
  void forward(Context& ctx, const TokenBatch& batch, bool training, bool save,
               TensorView logits) override;
  void backward(Context& ctx, const TokenBatch& batch, bool training, TensorView dlogits) override;
  void infer(Context& ctx, const TokenBatch& batch, TensorView embedding,
             TensorView logits) override;

 private:
  void classify(Context& ctx, const TokenBatch& batch, ConstTensorView first, TensorView logits,
                bool save);
  // Mean of rows [tokens, dim] over the genes of each cell; 0 where there are none.
  void mean_of_genes(Context& ctx, const TokenBatch& batch, ConstTensorView rows, TensorView mean);

  GeneformerNetwork& network_;
  CellEmbedding embedding_;
  bool specials_;
  Pooler::Saved pooler_saved_;
  ConstTensorView pooled_;
  PreparedArray<float> weights_;  // of each token in its cell's mean
  DeviceArrays weights_memory_;
};

// The dictionaries are files of options.dictionaries, or of the model's folder, whose names contain
// token_dictionary, gene_median_dictionary and, where names of other kinds have to be mapped,
// gene_name_id_dict (V1) or ensembl_mapping_dict (V2), as published (.pkl) or as JSON.
//
// Readers take counts (DataError E-VALUES-COUNTS for anything else: ranks need them). Genes are
// named by preparation.gene_key, else by the column ensembl_id, else by the index of var; version
// numbers of Ensembl ids are cut off. A cell's total is obs["n_counts"], else the sum of its row. A
// cell without a known gene is <pad> alone (V1), or <cls> and <eos>. Cells that a column
// filter_pass excludes are read like others.
//
// Throws ModelError: as load_geneformer() and GeneDictionaries, E-DICTIONARY when a dictionary is
// missing or there are several.
std::unique_ptr<CellModel> open_geneformer_cells(const std::string& folder,
                                                 const CellModelOptions& options);

}  // namespace scgraft
