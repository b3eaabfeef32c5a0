// SPDX-License-Identifier: Apache-2.0
#include "model/scgpt/cells.h"

#include "model/scgpt/token_reader.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

class ScgptCellModel : public CellModel {
 public:
  ScgptCellModel(const std::string& folder, const CellModelOptions& options)
      : model_(load_scgpt(folder, {.new_head_classes = options.classes,
                                   .seed = options.seed,
                                   .pretraining_heads = false})),
        cells_(*model_.network) {}

  CellNetwork& network() override { return cells_; }
  std::string_view title() const override { return "scGPT"; }
  const std::string& fingerprint() const override { return model_.fingerprint; }
  Preparation preparation() const override { return scgpt_preparation(model_.config); }
  void limit_genes(Preparation& preparation, int64_t genes) const override {
    preparation.max_length = genes + 1;  // <cls> in front
  }
  std::unique_ptr<CellReader> reader(Context& ctx, const H5ad& file,
                                     const Preparation& preparation) const override {
    require_preparation_of(preparation, "scgpt");
    return std::make_unique<TokenReader>(ctx, file, model_.vocabulary, model_.cls_id(),
                                         preparation);
  }

 private:
  ScgptModel model_;
  ScgptCells cells_;
};

}  // namespace

int64_t ScgptCells::classes() const {
  const Classifier* head = network_.classifier();
  return head == nullptr ? 0 : head->classes();
}

std::vector<Parameter*> ScgptCells::head_parameters() {
  const Classifier* head = network_.classifier();
  return head == nullptr ? std::vector<Parameter*>() : head->parameters();
}

void ScgptCells::forward(Context& ctx, const TokenBatch& batch, bool training, bool save,
                         TensorView logits) {
  const TensorView cells = ctx.activations().take({batch.cells(), network_.dim()}, DType::f32);
  network_.encode(ctx, batch, {.training = training, .save = save, .rows = LayerRows::cls}, cells);
  network_.classifier()->forward(ctx, cells, batch.cell_rows(), logits, save ? &saved_ : nullptr);
}

void ScgptCells::backward(Context& ctx, const TokenBatch& batch, bool training,
                          TensorView dlogits) {
  const TensorView dcells = ctx.activations().take({batch.cells(), network_.dim()}, DType::f32);
  network_.classifier()->backward(ctx, saved_, dlogits, batch.cell_rows(), dcells);
  network_.encode_backward(ctx, batch, {.training = training, .save = true, .rows = LayerRows::cls},
                           dcells);
}

void ScgptCells::infer(Context& ctx, const TokenBatch& batch, TensorView embedding,
                       TensorView logits) {
  const TensorView cells = embedding.empty()
                               ? ctx.activations().take({batch.cells(), network_.dim()}, DType::f32)
                               : embedding;
  network_.encode(ctx, batch, {.rows = LayerRows::cls}, cells);
  if (!logits.empty())
    network_.classifier()->forward(ctx, cells, batch.cell_rows(), logits, nullptr);
}

Preparation scgpt_preparation(const ScgptConfig& config) {
  Preparation p;
  p.n_bins = config.n_bins;
  p.max_length = config.max_seq_len;
  return p;
}

std::unique_ptr<CellModel> open_scgpt_cells(const std::string& folder,
                                            const CellModelOptions& options) {
  require_standard_embedding(options, "scGPT");
  if (!options.dictionaries.empty())
    throw ConfigError("scGPT reads the vocab.json of its folder and no dictionaries", "E-PREPARE");
  return std::make_unique<ScgptCellModel>(folder, options);
}

}  // namespace scgraft
