// SPDX-License-Identifier: Apache-2.0
#include "model/scbert/cells.h"

#include <filesystem>
#include <fstream>

#include "io/text.h"
#include "kernels/pool.h"
#include "model/aligned_reader.h"
#include "model/gene_files.h"
#include "model/scbert/bins.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

namespace fs = std::filesystem;

constexpr const char* kGenes = "genes.txt";

std::vector<std::string> read_gene_order(const std::string& path, const std::string& model) {
  std::ifstream file(path);
  if (!file.is_open()) {
    ModelError error(cat(escaped(path), " is not there or cannot be read; the model ",
                         escaped(model), " does not say which gene has which position"),
                     "E-GENE-ORDER");
    error.set_hint(
        "write the names of the genes of the model's training data, in its order, a name a line, "
        "into genes.txt in the model's folder; or --dictionaries DIR");
    error.set_where(path);
    throw error;
  }
  std::vector<std::string> genes;
  for (std::string line; std::getline(file, line);) {
    if (line.ends_with('\r')) line.pop_back();
    if (!line.empty()) genes.push_back(line);
  }
  return genes;
}

class ScbertCellModel : public CellModel {
 public:
  ScbertCellModel(const std::string& folder, const CellModelOptions& options)
      : folder_(absolute_folder(options.dictionaries)),
        model_(load_scbert(
            folder, {.new_head_classes = options.classes, .seed = options.seed, .heads = false})),
        genes_file_((fs::path(folder_.empty() ? folder : folder_) / kGenes).string()),
        genes_(read_gene_order(genes_file_, folder)),
        cells_(*model_.network) {
    require_gene_order(genes_, model_.config.positions, genes_file_, folder);
  }

  CellNetwork& network() override { return cells_; }
  std::string_view title() const override { return "scBERT"; }
  const std::string& fingerprint() const override { return model_.fingerprint; }
  Preparation preparation() const override {
    Preparation p;
    p.model = "scbert";
    p.dictionaries = folder_;
    p.dictionary_fingerprint = gene_order_fingerprint(genes_);
    return p;
  }
  void limit_genes(Preparation&, int64_t) const override {
    throw ConfigError("scBERT reads all its genes of every cell; their number cannot be limited",
                      "E-PREPARE");
  }
  std::unique_ptr<CellReader> reader(Context& ctx, const H5ad& file,
                                     const Preparation& preparation) const override {
    require_preparation_of(preparation, "scbert");
    preparation.validate();
    require_gene_order(genes_, model_.config.positions, genes_file_, model_.path,
                       preparation.dictionary_fingerprint);
    // Of the tokens one is the mask, the others are the bins 0 to top.
    const ScbertBinOptions options{.top = model_.config.tokens - 2};
    return std::make_unique<AlignedReader<ScbertBins>>(ctx, file, preparation, genes_, options,
                                                       "bins of scBERT");
  }

 private:
  std::string folder_;  // of genes.txt; empty: the model's
  ScbertModel model_;
  std::string genes_file_;
  std::vector<std::string> genes_;
  ScbertCells cells_;
};

}  // namespace

int64_t ScbertCells::classes() const {
  const RowClassifier* head = network_.classifier();
  return head == nullptr ? 0 : head->classes();
}

std::vector<Parameter*> ScbertCells::head_parameters() {
  std::vector<Parameter*> all;
  const RowClassifier* head = network_.classifier();
  if (head == nullptr) return all;
  for (const Linear* linear : {&head->row, &head->fc1, &head->fc2, &head->fc3})
    for (Parameter* p : {linear->weight(), linear->bias()}) all.push_back(p);
  return all;
}

void ScbertCells::forward(Context& ctx, const TokenBatch& batch, bool training, bool save,
                          TensorView logits) {
  const TensorView rows = rows_of(batch, ctx);
  network_.encode(ctx, batch, {.training = training, .save = save}, rows);
  network_.classifier()->forward(ctx, rows, batch.packing(), batch.cell_rows(), logits,
                                 save ? &saved_ : nullptr);
}

void ScbertCells::backward(Context& ctx, const TokenBatch& batch, bool training,
                           TensorView dlogits) {
  const TensorView drows = rows_of(batch, ctx);
  network_.classifier()->backward(ctx, saved_, dlogits, batch.packing(), batch.cell_rows(), drows);
  network_.encode_backward(ctx, batch, {.training = training, .save = true}, drows);
}

void ScbertCells::infer(Context& ctx, const TokenBatch& batch, TensorView embedding,
                        TensorView logits) {
  const TensorView rows = rows_of(batch, ctx);
  network_.encode(ctx, batch, {}, rows);
  if (!embedding.empty()) pool(ctx, Pooling::mean, rows, {}, batch.packing(), embedding);
  if (!logits.empty())
    network_.classifier()->forward(ctx, rows, batch.packing(), batch.cell_rows(), logits, nullptr);
}

void ScbertCells::received(Context& ctx, const TokenBatch& batch, TensorView received) {
  network_.attention_received(ctx, batch, ScbertNetwork::AttentionOf::attended, received);
}

std::unique_ptr<CellModel> open_scbert_cells(const std::string& folder,
                                             const CellModelOptions& options) {
  require_standard_embedding(options, "scBERT");
  return std::make_unique<ScbertCellModel>(folder, options);
}

}  // namespace scgraft
