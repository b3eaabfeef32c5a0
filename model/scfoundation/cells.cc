// SPDX-License-Identifier: Apache-2.0
#include "model/scfoundation/cells.h"

#include <filesystem>

#include "io/text.h"
#include "model/aligned_reader.h"
#include "model/gene_files.h"
#include "model/scfoundation/cell_tokenizer.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

namespace fs = std::filesystem;

constexpr const char* kGenes = "OS_scRNA_gene_index.19264.tsv";
constexpr const char* kBranch = "cell";

std::vector<std::string> read_gene_order(const std::string& path, const std::string& model,
                                         int64_t genes) {
  std::error_code ignored;
  if (!fs::exists(path, ignored)) {
    ModelError error(cat(escaped(path), " is not there; the model ", escaped(model),
                         " does not say which gene has which entry"),
                     "E-GENE-ORDER");
    error.set_hint(cat("put the table ", kGenes,
                       " that is published with the model into its folder; or --dictionaries DIR"));
    error.set_where(path);
    throw error;
  }
  return read_scfoundation_genes(path, genes);
}

class ScfoundationCellModel : public CellModel {
 public:
  ScfoundationCellModel(const std::string& folder, const CellModelOptions& options)
      : folder_(absolute_folder(options.dictionaries)),
        model_(load_scfoundation(folder, {.branch = kBranch,
                                          .new_head_classes = options.classes,
                                          .seed = options.seed,
                                          .heads = false,
                                          .decoder = false})),
        genes_file_((fs::path(folder_.empty() ? folder : folder_) / kGenes).string()),
        genes_(read_gene_order(genes_file_, folder, model_.config.genes())),
        gene_fingerprint_(gene_order_fingerprint(genes_)),
        cells_(*model_.network, options.embedding) {}

  CellNetwork& network() override { return cells_; }
  std::string_view title() const override { return "scFoundation"; }
  const std::string& fingerprint() const override { return model_.fingerprint; }
  Preparation preparation() const override {
    Preparation p;
    p.model = "scfoundation";
    p.dictionaries = folder_;
    p.dictionary_fingerprint = gene_fingerprint_;
    return p;
  }
  void limit_genes(Preparation&, int64_t) const override {
    throw ConfigError(
        "scFoundation reads all expressed genes of every cell; their number cannot be limited",
        "E-PREPARE");
  }
  std::unique_ptr<CellReader> reader(Context& ctx, const H5ad& file,
                                     const Preparation& preparation) const override {
    require_preparation_of(preparation, "scfoundation");
    preparation.validate();
    require_same_dictionaries(preparation, gene_fingerprint_, genes_file_);
    const ScfoundationTokenOptions options{
        .target = TargetDepth::parse(preparation.target_depth),
        .pad_value = static_cast<float>(model_.config.pad_value)};
    return std::make_unique<AlignedReader<ScfoundationTokenizer>>(
        ctx, file, preparation, genes_, options, "entries of scFoundation");
  }

 private:
  std::string folder_;  // of the table of genes; empty: the model's
  ScfoundationModel model_;
  std::string genes_file_;
  std::vector<std::string> genes_;
  std::string gene_fingerprint_;
  ScfoundationCells cells_;
};

}  // namespace

int64_t ScfoundationCells::classes() const {
  const PartsClassifier* head = network_.classifier();
  return head == nullptr ? 0 : head->classes();
}

std::vector<Parameter*> ScfoundationCells::head_parameters() {
  std::vector<Parameter*> all;
  const PartsClassifier* head = network_.classifier();
  if (head == nullptr) return all;
  for (const Linear* linear : {&head->hidden, &head->out})
    for (Parameter* p : {linear->weight(), linear->bias()}) all.push_back(p);
  return all;
}

void ScfoundationCells::forward(Context& ctx, const TokenBatch& batch, bool training, bool save,
                                TensorView logits) {
  const TensorView rows = rows_of(batch, ctx), parts = parts_of(batch, ctx);
  network_.encode(ctx, batch, {.training = training, .save = save}, rows);
  parts_.forward(ctx, rows, batch.packing(), parts);
  network_.classifier()->forward(ctx, parts, batch.cell_rows(), logits, save ? &saved_ : nullptr);
}

void ScfoundationCells::backward(Context& ctx, const TokenBatch& batch, bool training,
                                 TensorView dlogits) {
  const TensorView drows = rows_of(batch, ctx), dparts = parts_of(batch, ctx);
  network_.classifier()->backward(ctx, saved_, dlogits, batch.cell_rows(), dparts);
  parts_.backward(ctx, dparts, batch.packing(), drows);
  network_.encode_backward(ctx, batch, {.training = training, .save = true}, drows);
}

void ScfoundationCells::infer(Context& ctx, const TokenBatch& batch, TensorView embedding,
                              TensorView logits) {
  const TensorView rows = rows_of(batch, ctx);
  network_.encode(ctx, batch, {}, rows);
  const bool largest = embedding_ == CellPooling::max;
  if (largest && !embedding.empty()) largest_.forward(ctx, rows, batch.packing(), embedding);
  TensorView parts = largest ? TensorView() : embedding;
  if (parts.empty() && !logits.empty()) parts = parts_of(batch, ctx);
  if (!parts.empty()) parts_.forward(ctx, rows, batch.packing(), parts);
  if (!logits.empty())
    network_.classifier()->forward(ctx, parts, batch.cell_rows(), logits, nullptr);
}

std::unique_ptr<CellModel> open_scfoundation_cells(const std::string& folder,
                                                   const CellModelOptions& options) {
  if (options.embedding != CellEmbedding::standard && options.embedding != CellEmbedding::max)
    throw ConfigError("scFoundation has the embeddings \"auto\" and \"max\"", "E-EMBEDDING-KIND");
  return std::make_unique<ScfoundationCellModel>(folder, options);
}

}  // namespace scgraft
