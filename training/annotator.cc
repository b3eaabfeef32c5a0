// SPDX-License-Identifier: Apache-2.0
#include "training/annotator.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <map>

#include "io/sha256.h"
#include "io/text.h"
#include "model/folder_kind.h"
#include "runtime/error.h"
#include "training/labelled_data.h"
#include "training/predict.h"

namespace scgraft {
namespace {

// Scales rows to unit length where they are wanted so; a cell without genes becomes NaN.
void finish_embedding(TensorView embedding, bool unit, const std::vector<uint8_t>& empty) {
  const auto e = embedding.as<float, 2>();
  for (int64_t i = 0; i < e.dim(0); ++i) {
    const bool none = empty[static_cast<size_t>(i)] != 0;
    if (!unit && !none) continue;
    double square = 0;
    for (int64_t d = 0; d < e.dim(1); ++d)
      square += static_cast<double>(e(i, d)) * static_cast<double>(e(i, d));
    const double scale =
        none ? std::numeric_limits<double>::quiet_NaN() : 1.0 / std::max(std::sqrt(square), 1e-12);
    for (int64_t d = 0; d < e.dim(1); ++d)
      e(i, d) = static_cast<float>(static_cast<double>(e(i, d)) * scale);
  }
}

// Fills the summary of row `i` from its probabilities.
void summarise(Annotation& out, int64_t i, bool empty) {
  const auto p = out.probabilities.as<float, 2>();
  const auto at = static_cast<size_t>(i);
  if (empty) {
    for (int64_t c = 0; c < p.dim(1); ++c) p(i, c) = std::numeric_limits<float>::quiet_NaN();
    out.label[at] = out.second[at] = -1;
    out.confidence[at] = out.margin[at] = out.entropy[at] = std::numeric_limits<float>::quiet_NaN();
    ++out.without_genes;
    return;
  }
  int64_t first = 0, second = -1;
  double entropy = 0;
  for (int64_t c = 0; c < p.dim(1); ++c) {
    const double v = static_cast<double>(p(i, c));
    if (v > 0) entropy -= v * std::log(v);
    if (c > 0 && p(i, c) > p(i, first)) {
      second = first;
      first = c;
    } else if (c > 0 && (second < 0 || p(i, c) > p(i, second))) {
      second = c;
    }
  }
  out.label[at] = static_cast<int32_t>(first);
  out.second[at] = static_cast<int32_t>(second);
  out.confidence[at] = p(i, first);
  out.margin[at] = p(i, first) - p(i, second);
  out.entropy[at] = static_cast<float>(entropy);
}

// A model of another kind has other places, names and tokens, whatever is allowed to differ.
std::unique_ptr<CellModel> open_base(const std::string& adapter, const std::string& kind,
                                     const std::string& folder, const CellModelOptions& options) {
  const std::string found = folder_kind(folder);
  if (found != kind && !kind.empty()) {
    ModelError error(cat(escaped(adapter), " was made for a model of the kind ", escaped(kind, 40),
                         ", ", escaped(folder), " is of the kind ", found),
                     "E-ADAPTER-BASE");
    error.set_hint("--model DIR names the model that the adapter was trained on");
    error.set_where(folder);
    throw error;
  }
  return open_cell_model(folder, options);
}

// The adapter's own record of its base may be out of date: then the way out is to say where it is.
std::unique_ptr<CellModel> load_base(const std::string& adapter, const AdapterBundle& bundle,
                                     const AnnotatorOptions& options,
                                     const CellModelOptions& open) {
  if (!options.model.empty()) return open_base(adapter, bundle.base_kind, options.model, open);
  constexpr const char* kHint = "say where the model is now: --model DIR";
  if (bundle.base_path.empty()) {
    ModelError error(cat(escaped(adapter), " does not say which model it was made for"),
                     "E-MODEL-FOLDER");
    error.set_hint(kHint);
    throw error;
  }
  try {
    return open_base(adapter, bundle.base_kind, bundle.base_path, open);
  } catch (ModelError& error) {
    if (error.code() == "E-MODEL-FOLDER") error.set_hint(kHint);
    throw;
  }
}

}  // namespace

Annotator::Annotator(const std::string& adapter, const AnnotatorOptions& options)
    : loaded_(load_adapter(adapter)) {
  const AdapterBundle& bundle = loaded_.bundle;
  fingerprint_ = sha256_of_file((std::filesystem::path(adapter) / "MANIFEST.sha256").string());
  preparation_ = Preparation::from_json(bundle.preprocess, "preprocess.json");
  model_ = load_base(adapter, bundle, options,
                     {.classes = static_cast<int64_t>(bundle.labels.size()),
                      .embedding = options.embedding,
                      .dictionaries = options.dictionaries.empty() ? preparation_.dictionaries
                                                                   : options.dictionaries});
  Backbone& backbone = model_->backbone();
  adapter_ = attach_adapter(loaded_, backbone, model_->fingerprint(), options.allow_base_mismatch);
  backbone.parameters_updated();
  backbone.set_precision(options.product);
  if (!labels().empty())
    classification_ = std::make_unique<CellClassification>(model_->network(), std::vector<float>());
  if (bundle.baselines.empty()) return;
  std::map<std::string, Tensor> tensors;
  for (size_t i = 0; i < bundle.baselines.size(); ++i)
    tensors.emplace(bundle.baselines[i].name, loaded_.baseline_tensors[i].share());
  baselines_ = std::make_unique<Baselines>(Baselines::from_tensors(tensors, adapter));
}

void Annotator::move_to(Device device) {
  model_->backbone().move_to(device);
  if (adapter_) scgraft::move_to(adapter_->parameters(), device);
}

Annotation Annotator::annotate(Context& ctx, const H5ad& file, const std::string& gene_key,
                               const std::string& layer, const RunEvents& events) {
  if (classification_ == nullptr) {
    ModelError error(cat(escaped(loaded_.folder), " has no head for classes, and no names of any"),
                     "E-ADAPTER");
    error.set_hint("embed works with it; adapter import --labels FILE, where a head came with it");
    error.set_where(loaded_.folder);
    throw error;
  }
  Preparation preparation = preparation_;
  if (!gene_key.empty()) preparation.gene_key = gene_key;
  preparation.layer = layer.empty() ? "auto" : layer;
  HostContext host(ctx);
  move_to(ctx.device());
  const auto reader = model_->reader(host.get(), file, preparation);
  const auto cells = static_cast<size_t>(reader->cells());
  const auto classes = static_cast<int64_t>(labels().size());
  Annotation out;
  out.genes = reader->match();
  out.slot = reader->slot();
  for (auto* list : {&out.label, &out.second}) list->resize(cells);
  for (auto* list : {&out.confidence, &out.margin, &out.entropy}) list->resize(cells);
  out.probabilities = Tensor({reader->cells(), classes}, DType::f32);
  out.embedding = Tensor({reader->cells(), model_->network().embedding_dim()}, DType::f32);
  std::vector<int32_t> column_of;
  if (baselines_) {
    column_of =
        gene_columns(gene_names(file, out.slot.slot, preparation.gene_key), loaded_.bundle.genes);
    out.logistic.resize(cells);
    out.neighbours.resize(cells);
  }
  std::vector<uint8_t> empty(cells, 0);

  TokenisedCells chunk;
  MicroBatch micro_batch = inference_micro_batch(ctx);
  SparseRows expression;
  std::vector<CellView> views;
  while (reader->next(chunk, baselines_ ? &expression : nullptr)) {
    const int64_t begin = chunk.first_cell, end = begin + chunk.cells();
    views.clear();
    for (int64_t i = 0; i < chunk.cells(); ++i) views.push_back(chunk.view(i));
    for (const int64_t cell : chunk.empty) empty[static_cast<size_t>(cell)] = 1;
    predict_cells(ctx, *classification_, views, out.probabilities.view().rows(begin, end),
                  out.embedding.view().rows(begin, end), micro_batch, [&] { events.check_stop(); });
    for (int64_t i = begin; i < end; ++i) summarise(out, i, empty[static_cast<size_t>(i)] != 0);
    if (baselines_) {
      SparseFeatures features;
      features.columns = baselines_->columns();
      std::vector<int64_t> rows;
      for (int64_t i = begin; i < end; ++i) rows.push_back(i);
      features.append(expression, rows, FeatureInput::log1p, column_of);
      const auto logistic = baselines_->logistic(host.get(), features).label;
      const auto neighbours = baselines_->neighbours(host.get(), features).label;
      std::copy(logistic.begin(), logistic.end(), out.logistic.begin() + begin);
      std::copy(neighbours.begin(), neighbours.end(), out.neighbours.begin() + begin);
    }
    events.tell("annotate", end, reader->cells());
  }
  finish_embedding(out.embedding.view(), model_->network().unit_embeddings(), empty);
  return out;
}

Embeddings embed_file(Context& ctx, const H5ad& file, CellModel& model,
                      const Preparation& preparation, const RunEvents& events) {
  HostContext host(ctx);
  model.backbone().move_to(ctx.device());
  const auto reader = model.reader(host.get(), file, preparation);
  Embeddings out;
  out.genes = reader->match();
  out.slot = reader->slot();
  out.values = Tensor({reader->cells(), model.network().embedding_dim()}, DType::f32);
  std::vector<uint8_t> empty(static_cast<size_t>(reader->cells()), 0);
  TokenisedCells chunk;
  MicroBatch micro_batch = inference_micro_batch(ctx);
  std::vector<CellView> views;
  while (reader->next(chunk, nullptr)) {
    views.clear();
    for (int64_t i = 0; i < chunk.cells(); ++i) views.push_back(chunk.view(i));
    for (const int64_t cell : chunk.empty) empty[static_cast<size_t>(cell)] = 1;
    out.without_genes += std::ssize(chunk.empty);
    embed_cells(ctx, model.network(), views,
                out.values.view().rows(chunk.first_cell, chunk.first_cell + chunk.cells()),
                micro_batch, [&] { events.check_stop(); });
    events.tell("embed", chunk.first_cell + chunk.cells(), reader->cells());
  }
  finish_embedding(out.values.view(), model.network().unit_embeddings(), empty);
  return out;
}

}  // namespace scgraft
