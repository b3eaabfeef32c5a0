// SPDX-License-Identifier: Apache-2.0
#include "model/geneformer/cells.h"

#include <algorithm>
#include <filesystem>

#include "io/h5ad_rows.h"
#include "io/sha256.h"
#include "io/text.h"
#include "kernels/pool.h"
#include "model/gene_files.h"
#include "model/geneformer/rank_tokenizer.h"
#include "model/preprocess.h"
#include "runtime/error.h"
#include "runtime/log.h"

namespace scgraft {
namespace {

namespace fs = std::filesystem;

constexpr const char* kIdColumn = "ensembl_id";

[[noreturn]] void refuse_dictionary(const std::string& message, const std::string& folder) {
  ModelError error(cat(escaped(folder), ": ", message), "E-DICTIONARY");
  error.set_hint(
      "--dictionaries DIR names a folder with one token_dictionary, one gene_median_dictionary "
      "and, "
      "where genes are named by symbols, one gene_name_id_dict (V1) or ensembl_mapping_dict (V2), "
      ".pkl or .json, all of the model's generation");
  error.set_where(folder);
  throw error;
}

// The one file of a folder whose name says so; empty when there is none.
std::string dictionary_file(const std::string& folder, const std::string& what) {
  std::vector<std::string> found;
  std::error_code ignored;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, ignored)) {
    const std::string name = entry.path().filename().string();
    const std::string extension = entry.path().extension().string();
    if (name.find(what) != std::string::npos &&
        (extension == ".pkl" || extension == ".pickle" || extension == ".json"))
      found.push_back(entry.path().string());
  }
  std::sort(found.begin(), found.end());
  if (found.size() > 1)
    refuse_dictionary(cat(fs::path(found[0]).filename().string(), " and ",
                          fs::path(found[1]).filename().string(), " are both there, one is wanted"),
                      folder);
  return found.empty() ? std::string() : found.front();
}

GeneDictionaries open_dictionaries(const std::string& folder) {
  const std::string tokens = dictionary_file(folder, "token_dictionary");
  const std::string medians = dictionary_file(folder, "gene_median_dictionary");
  if (tokens.empty() || medians.empty())
    refuse_dictionary(
        cat("there is no ", tokens.empty() ? "token_dictionary" : "gene_median_dictionary",
            " file, which says what the tokens of Geneformer are"),
        folder);
  GeneDictionaries dictionaries = GeneDictionaries::open(tokens, medians);
  const bool v1 = dictionaries.generation == GeneformerGeneration::v1;
  const std::string mapping =
      dictionary_file(folder, v1 ? "gene_name_id_dict" : "ensembl_mapping_dict");
  return mapping.empty() ? std::move(dictionaries)
                         : GeneDictionaries::open(tokens, medians, mapping);
}

// Of everything that decides which tokens a cell gets, however the files say it.
std::string fingerprint_of(const GeneDictionaries& dictionaries) {
  Sha256 digest;
  for (int64_t id = 0; id < dictionaries.tokens.size(); ++id) {
    digest.update(dictionaries.tokens.token(id));
    digest.update("\n");
  }
  digest.update(std::as_bytes(std::span(dictionaries.medians)));
  std::vector<std::string> lines;
  for (const auto& [name, id] : dictionaries.mapping) lines.push_back(cat(name, "\t", id, "\n"));
  std::sort(lines.begin(), lines.end());
  for (const std::string& line : lines) digest.update(line);
  return digest.finish();
}

// "ENSG00000141510.18" is the 18th version of ENSG00000141510.
std::string without_version(std::string name) {
  const size_t dot = name.find('.');
  if (name.starts_with("ENS") && dot != std::string::npos && dot + 1 < name.size() &&
      name.find_first_not_of("0123456789", dot + 1) == std::string::npos)
    name.resize(dot);
  return name;
}

class RankReader : public CellReader {
 public:
  RankReader(Context& ctx, const H5ad& file, const GeneDictionaries& dictionaries,
             const Preparation& preparation)
      : ctx_(ctx),
        preparation_(preparation),
        slot_(choose_counts(file, preparation.layer, "ranks of genes")),
        reader_(file, slot_.slot),
        totals_(read_cell_totals(file.obs())),
        pad_id_(dictionaries.pad_id) {
    const MatrixSlot& slot = file.slot(slot_.slot);
    std::string key = preparation.gene_key;
    if (key.empty() && file.var_of(slot).has(kIdColumn)) key = kIdColumn;
    std::vector<std::string> names = gene_names_of(file, slot, key);
    for (std::string& name : names) name = without_version(std::move(name));
    tokenizer_.emplace(dictionaries, names, file.path(),
                       RankOptions{.max_length = preparation.max_length});
    match_.gene_key = key;
    for (const std::string& name : names)
      match_.token.push_back(dictionaries.find(name).value_or(-1));
    finish_match(file, names, match_);
    log_info("ranks: totals of cells are ",
             totals_.values.empty() ? "the sums of their counts" : "obs[\"n_counts\"]");
  }

  const SlotChoice& slot() const override { return slot_; }
  const GeneMatch& match() const override { return match_; }
  int64_t cells() const override { return reader_.rows(); }
  Preparation preparation() const override { return preparation_; }
  bool next(TokenisedCells& out, SparseRows* normalised) override;

 private:
  // A network has no result for a cell without tokens: it gets one that is no gene.
  void fill_empty(TokenisedCells& cells) const;

  Context& ctx_;
  Preparation preparation_;
  SlotChoice slot_;
  RowReader reader_;
  CellTotals totals_;
  int32_t pad_id_;
  GeneMatch match_;
  std::optional<RankTokenizer> tokenizer_;
  SparseRows rows_;
};

bool RankReader::next(TokenisedCells& out, SparseRows* normalised) {
  if (!reader_.next(rows_)) return false;
  tokenizer_->tokenise(ctx_, rows_, totals_, reader_.slot().dtype, out);
  fill_empty(out);
  if (normalised != nullptr) take_normalised(ctx_, rows_, *normalised);
  return true;
}

void RankReader::fill_empty(TokenisedCells& cells) const {
  TokenisedCells filled;
  for (int64_t i = 0; i < cells.cells(); ++i) {
    const CellView cell = cells.view(i);
    if (!cell.genes.empty() && filled.genes.empty()) continue;
    if (filled.genes.empty()) {  // everything before the first empty cell
      const auto begin = static_cast<ptrdiff_t>(cells.offsets[static_cast<size_t>(i)]);
      filled.offsets.assign(cells.offsets.begin(), cells.offsets.begin() + i + 1);
      filled.genes.assign(cells.genes.begin(), cells.genes.begin() + begin);
      filled.values.assign(cells.values.begin(), cells.values.begin() + begin);
    }
    filled.genes.insert(filled.genes.end(), cell.genes.begin(), cell.genes.end());
    filled.values.insert(filled.values.end(), cell.values.begin(), cell.values.end());
    if (cell.genes.empty()) {
      filled.genes.push_back(pad_id_);
      filled.values.push_back(0);
    }
    filled.offsets.push_back(static_cast<int64_t>(filled.genes.size()));
  }
  if (filled.genes.empty()) return;
  cells.offsets = std::move(filled.offsets);
  cells.genes = std::move(filled.genes);
  cells.values = std::move(filled.values);
}

class GeneformerCellModel : public CellModel {
 public:
  GeneformerCellModel(const std::string& folder, const CellModelOptions& options)
      : folder_(absolute_folder(options.dictionaries)),
        model_(load_geneformer(
            folder, {.new_head_classes = options.classes, .seed = options.seed, .heads = false})),
        dictionaries_(open_dictionaries(folder_.empty() ? folder : folder_)),
        dictionary_fingerprint_(fingerprint_of(dictionaries_)),
        cells_(*model_.network, options.embedding, specials() > 0) {
    dictionaries_.require_model(model_.config, folder);
  }

  CellNetwork& network() override { return cells_; }
  std::string_view title() const override { return "geneformer"; }
  const std::string& fingerprint() const override { return model_.fingerprint; }
  Preparation preparation() const override {
    Preparation p;
    p.model = "geneformer";
    p.max_length = model_.config.positions;
    p.dictionaries = folder_;
    p.dictionary_fingerprint = dictionary_fingerprint_;
    return p;
  }
  void limit_genes(Preparation& preparation, int64_t genes) const override {
    preparation.max_length = genes + specials();
  }
  std::unique_ptr<CellReader> reader(Context& ctx, const H5ad& file,
                                     const Preparation& preparation) const override {
    require_preparation_of(preparation, "geneformer");
    preparation.validate();
    require_same_dictionaries(preparation, dictionary_fingerprint_, dictionaries_.token_file);
    require_positions(dictionaries_, {.max_length = preparation.max_length},
                      model_.config.positions, model_.path);
    return std::make_unique<RankReader>(ctx, file, dictionaries_, preparation);
  }

 private:
  int64_t specials() const { return dictionaries_.generation == GeneformerGeneration::v2 ? 2 : 0; }

  std::string folder_;  // of the dictionaries; empty: the model's
  GeneformerModel model_;
  GeneDictionaries dictionaries_;
  std::string dictionary_fingerprint_;
  GeneformerCells cells_;
};

}  // namespace

int64_t GeneformerCells::classes() const {
  const Linear* head = network_.classifier();
  return head == nullptr ? 0 : head->out();
}

std::vector<Parameter*> GeneformerCells::head_parameters() {
  std::vector<Parameter*> all;
  if (network_.classifier() == nullptr) return all;
  for (const Linear* linear : {&network_.pooler()->dense, network_.classifier()})
    for (Parameter* p : {linear->weight(), linear->bias()}) all.push_back(p);
  return all;
}

void GeneformerCells::classify(Context& ctx, const TokenBatch& batch, ConstTensorView first,
                               TensorView logits, bool save) {
  const Packing rows = batch.cell_rows();
  const TensorView pooled = ctx.activations().take(first.shape(), first.dtype());
  network_.pooler()->forward(ctx, first, rows, pooled, save ? &pooler_saved_ : nullptr);
  network_.classifier()->forward(ctx, pooled, rows, false, logits);
  pooled_ = pooled;
}

void GeneformerCells::forward(Context& ctx, const TokenBatch& batch, bool training, bool save,
                              TensorView logits) {
  const TensorView first = ctx.activations().take({batch.cells(), network_.dim()}, DType::f32);
  network_.encode(ctx, batch, {.training = training, .save = save, .rows = LayerRows::cls}, first);
  classify(ctx, batch, first, logits, save);
}

void GeneformerCells::backward(Context& ctx, const TokenBatch& batch, bool training,
                               TensorView dlogits) {
  const Packing rows = batch.cell_rows();
  const Shape shape{batch.cells(), network_.dim()};
  const TensorView dpooled = ctx.activations().take(shape, DType::f32);
  const TensorView dfirst = ctx.activations().take(shape, DType::f32);
  network_.classifier()->backward(ctx, pooled_, dlogits, rows, false, false, dpooled);
  network_.pooler()->backward(ctx, pooler_saved_, dpooled, rows, dfirst);
  network_.encode_backward(ctx, batch, {.training = training, .save = true, .rows = LayerRows::cls},
                           dfirst);
}

void GeneformerCells::mean_of_genes(Context& ctx, const TokenBatch& batch, ConstTensorView rows,
                                    TensorView mean) {
  const Packing packing = batch.packing();
  if (!specials_) return pool(ctx, Pooling::mean, rows, {}, packing, mean);
  weights_.host.assign(static_cast<size_t>(packing.tokens()), 0.0f);
  for (int64_t cell = 0; cell < packing.cells(); ++cell) {
    const auto genes = static_cast<float>(packing.length(cell) - 2);
    for (int64_t i = packing.begin(cell) + 1; i < packing.end(cell) - 1; ++i)
      weights_.host[static_cast<size_t>(i)] = 1 / genes;
  }
  weights_memory_.send(ctx, weights_);
  pool(ctx, Pooling::weighted, rows, weights_.view(), packing, mean);
}

void GeneformerCells::infer(Context& ctx, const TokenBatch& batch, TensorView embedding,
                            TensorView logits) {
  const int64_t d = network_.dim();
  const Packing packing = batch.packing();
  const bool mean = !embedding.empty() && embedding_ != CellEmbedding::first;
  const bool all = mean && embedding_ == CellEmbedding::last;
  const bool before = mean && !all;
  TensorView tokens, first;
  if (mean) tokens = ctx.activations().take({packing.tokens(), d}, DType::f32);
  if (!logits.empty() || (!embedding.empty() && !mean))
    first = ctx.activations().take({batch.cells(), d}, DType::f32);
  if (all) {
    network_.encode(ctx, batch, {}, tokens);
    if (!first.empty()) pool(ctx, Pooling::cls, tokens, {}, packing, first);
  } else {
    EncodeOptions options{.rows = LayerRows::cls};
    if (before) options.before_last = tokens;
    network_.encode(ctx, batch, options, first);
  }
  if (mean)
    mean_of_genes(ctx, batch, tokens, embedding);
  else if (!embedding.empty())
    copy(ctx, first, embedding);
  if (!logits.empty()) classify(ctx, batch, first, logits, false);
}

std::unique_ptr<CellModel> open_geneformer_cells(const std::string& folder,
                                                 const CellModelOptions& options) {
  if (options.embedding == CellEmbedding::max)
    throw ConfigError("Geneformer has no embedding \"max\"", "E-EMBEDDING-KIND");
  return std::make_unique<GeneformerCellModel>(folder, options);
}

}  // namespace scgraft
