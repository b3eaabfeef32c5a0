// SPDX-License-Identifier: Apache-2.0
#include "training/fine_tune.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <numeric>
#include <optional>

#include "adapters/adapter.h"
#include "adapters/store.h"
#include "model/cell_model.h"
#include "runtime/cpu.h"
#include "runtime/log.h"
#include "runtime/version.h"
#include "training/baselines.h"
#include "training/cell_sources.h"
#include "training/class_weights.h"
#include "training/classification.h"
#include "training/labelled_data.h"
#include "training/metrics_json.h"
#include "training/nearest_neighbours.h"
#include "training/parameter_block.h"
#include "training/precision.h"
#include "training/predict.h"
#include "training/split.h"

namespace scgraft {
namespace {

// Numbers of cells (in the selection) of each part; all ascending.
struct Parts {
  std::vector<int64_t> train, validation, test;
};

Split split_once(std::span<const int32_t> labels, std::span<const int32_t> groups, double fraction,
                 uint64_t seed) {
  return groups.empty() ? stratified_split(labels, fraction, seed)
                        : group_split(labels, groups, fraction, seed);
}

Parts split_cells(const CellSelection& cells, const RunConfig& config) {
  const auto seed = static_cast<uint64_t>(config.train.seed);
  Parts parts;
  std::vector<int32_t> labels = cells.label;  // -1 once a cell is spent
  if (config.data.test_fraction > 0) {
    parts.test = split_once(labels, cells.group, config.data.test_fraction, seed).validation;
    for (const int64_t i : parts.test) labels[static_cast<size_t>(i)] = -1;
  }
  if (config.data.val.empty() && config.data.val_fraction > 0) {
    // Of all cells, so that the parts have the sizes that were asked for.
    const double fraction = config.data.val_fraction / (1 - config.data.test_fraction);
    Split split = split_once(labels, cells.group, fraction, seed + 1);
    parts.train = std::move(split.train);
    parts.validation = std::move(split.validation);
  } else {
    for (size_t i = 0; i < labels.size(); ++i)
      if (labels[i] >= 0) parts.train.push_back(static_cast<int64_t>(i));
  }
  return parts;
}

std::vector<int32_t> gather(std::span<const int32_t> values, std::span<const int64_t> at) {
  std::vector<int32_t> out;
  for (const int64_t i : at) out.push_back(values[static_cast<size_t>(i)]);
  return out;
}

// One run; members in the order they come to life.
class FineTune {
 public:
  FineTune(Context& ctx, const RunConfig& config, const RunEvents& events)
      : ctx_(ctx),
        host_(ctx),
        config_(config),
        events_(events),
        file_(H5ad::open(config.data.train)) {}

  FineTuneResult run(const std::string& command_line, bool overwrite);

 private:
  void open_model();
  void read();
  void graft();
  void score_frozen();
  void score_baselines();
  void learn();
  void score_model();
  void save(const std::string& command_line, bool overwrite);

  std::span<const int64_t> scored() const {
    return parts_.test.empty() ? parts_.validation : parts_.test;
  }
  int32_t classes() const { return static_cast<int32_t>(cells_.labels.size()); }
  Tensor embeddings(std::span<const int64_t> cells);
  ClassificationMetrics score(const ClassPrediction& prediction) const {
    return classification_metrics(gather(cells_.label, scored()), prediction.label, classes(),
                                  prediction.probabilities.view());
  }

  Context& ctx_;
  HostContext host_;  // of what reads files and of the baselines
  const RunConfig& config_;
  const RunEvents& events_;
  H5ad file_;
  CellSelection cells_;
  Parts parts_;
  std::unique_ptr<CellModel> model_;
  DType product_ = DType::f32;
  Preparation preparation_;
  CellData data_;
  std::unique_ptr<Adapter> adapter_;
  std::vector<Parameter*> trained_;  // everything with a gradient
  std::vector<Parameter*> saved_;    // of the backbone and the head, not of the adapter
  std::unique_ptr<CellClassification> objective_;
  std::optional<Baselines> baselines_;
  FineTuneResult result_;
};

void FineTune::open_model() {
  model_ = open_cell_model(config_.base_model, {.classes = classes(),
                                                .seed = static_cast<uint64_t>(config_.train.seed),
                                                .dictionaries = config_.data.dictionaries});
  product_ = product_dtype(config_.train.precision, ctx_.device());
  model_->backbone().set_precision(product_);
  model_->backbone().redraw_features(config_.train.redraw_interval);
  model_->backbone().set_recompute(config_.train.activations == "recompute");
  model_->backbone().move_to(ctx_.device());
}

void FineTune::read() {
  // Where genes are chosen by their variation, the choice of the first file is that of all.
  const auto reader = model_->reader(host_.get(), file_, preparation_of(config_, *model_));
  preparation_ = reader->preparation();
  read_cells(*reader, file_, cells_.rows, events_, data_);
  if (config_.data.val.empty()) return;
  const H5ad file = H5ad::open(config_.data.val);
  const CellSelection more = select_labelled_cells(file, config_.data, cells_.labels);
  for (const int32_t label : more.label) {
    parts_.validation.push_back(static_cast<int64_t>(cells_.label.size()));
    cells_.label.push_back(label);
  }
  read_cells(*model_->reader(host_.get(), file, preparation_), file, more.rows, events_, data_);
}

Tensor FineTune::embeddings(std::span<const int64_t> cells) {
  LabelledCells source(data_.tokens, cells, cells_.label);
  Tensor out({source.size(), model_->network().embedding_dim()}, DType::f32);
  MicroBatch micro_batch = inference_micro_batch(ctx_);
  for_each_group(source, 0, [&](std::span<const CellView> views, int64_t begin) {
    embed_cells(ctx_, model_->network(), views,
                out.view().rows(begin, begin + static_cast<int64_t>(views.size())), micro_batch);
    events_.tell("embed", begin + static_cast<int64_t>(views.size()), source.size());
  });
  return out;
}

// What the frozen model knows: neighbours of its embeddings.
void FineTune::score_frozen() {
  if (scored().empty()) return;
  const Tensor known = embeddings(parts_.train);
  const Tensor asked = embeddings(scored());
  const NearestNeighbours nearest(host_.get(), known.view(), gather(cells_.label, parts_.train),
                                  classes(), BaselineOptions().neighbours);
  result_.scores["zero_shot_knn"] = score(nearest.predict(host_.get(), asked.view()));
}

void FineTune::score_baselines() {
  events_.tell("baselines", 0, 0);
  const SparseFeatures train = data_.expression.selected(parts_.train);
  baselines_ = Baselines::fit(host_.get(), train, gather(cells_.label, parts_.train), classes(),
                              {.seed = static_cast<uint64_t>(config_.train.seed)});
  if (scored().empty()) return;
  const SparseFeatures asked = data_.expression.selected(scored());
  result_.scores["logistic_regression"] = score(baselines_->logistic(host_.get(), asked));
  result_.scores["knn"] = score(baselines_->neighbours(host_.get(), asked));
}

void FineTune::graft() {
  Backbone& net = model_->backbone();
  saved_ = model_->network().head_parameters();
  const std::string& what = config_.train.trainable;
  if (what == "all") {
    for (Parameter* p : net.encoder_parameters()) {
      if (p->value.is_shared()) p->value = p->value.clone();  // a mapped file is read-only
      saved_.push_back(p);
    }
  }
  trained_ = saved_;
  if (what == "adapter") {
    AdapterOptions options;
    options.type = config_.adapter.type;
    options.rank = config_.adapter.r;
    options.alpha = config_.adapter.lora_alpha;
    options.dropout = config_.adapter.lora_dropout;
    options.targets = config_.adapter.target_modules;
    options.blocks = config_.adapter.blocks;
    options.block_size = config_.adapter.block_size;
    options.constraint = config_.adapter.constraint;
    options.width = config_.adapter.width;
    options.layout = config_.adapter.layout;
    options.start = config_.adapter.start;
    options.tokens = config_.adapter.tokens;
    options.sharing = config_.adapter.sharing;
    options.first_layer = static_cast<int>(config_.adapter.first_layer);
    options.last_layer = static_cast<int>(config_.adapter.last_layer);
    adapter_ = make_adapter(options, net, static_cast<uint64_t>(config_.train.seed));
    adapter_->attach(net);
    for (Parameter* p : adapter_->parameters()) trained_.push_back(p);
  }
  const std::vector<int64_t> counts = class_counts(gather(cells_.label, parts_.train), classes());
  objective_ = std::make_unique<CellClassification>(
      model_->network(), class_weights(parse_class_weighting(config_.train.class_weights), counts));
  for (const Parameter* p : trained_) result_.trained_parameters += p->value.numel();
  result_.total_parameters = net.parameters().numel();
  if (adapter_)
    for (const Parameter* p : adapter_->parameters()) result_.total_parameters += p->value.numel();
}

void FineTune::learn() {
  const RunConfig::Train& t = config_.train;
  ParameterBlock block(trained_, t.weight_decay);
  model_->backbone().parameters_updated();
  LabelledCells train_cells(data_.tokens, parts_.train, cells_.label);
  LabelledCells validation(data_.tokens, parts_.validation, cells_.label);
  const std::vector<int32_t> truth = gather(cells_.label, parts_.validation);
  int64_t steps = 0;
  TrainerCallbacks callbacks;
  callbacks.stop_requested = events_.stop_requested;
  callbacks.on_step = [&](const StepReport& report) {
    steps = report.step;
    if (events_.step) events_.step(report);
  };
  MicroBatch micro_batch = inference_micro_batch(ctx_);
  if (!parts_.validation.empty())
    callbacks.validate = [&](int64_t epoch) {
      Tensor probabilities({validation.size(), classes()}, DType::f32);
      for_each_group(validation, 0, [&](std::span<const CellView> views, int64_t begin) {
        predict_cells(ctx_, *objective_, views,
                      probabilities.view().rows(begin, begin + static_cast<int64_t>(views.size())),
                      {}, micro_batch);
      });
      const ClassificationMetrics metrics = classification_metrics(
          truth, most_probable_classes(probabilities.view()), classes(), probabilities.view());
      const double loss = metrics.nll.value_or(std::nan(""));
      if (events_.epoch)
        events_.epoch({.epoch = epoch, .step = steps, .loss = loss, .metrics = &metrics});
      return loss;
    };
  if (t.activations == "auto") callbacks.need_less_memory = recomputing(model_->backbone());
  result_.training = train(
      ctx_, *objective_, train_cells, block,
      {.epochs = t.epochs,
       .max_steps = t.max_steps,
       .batch_size = t.micro_batch_size,
       .accumulation = t.gradient_accumulation_steps,
       .schedule = parse_schedule(t.lr_scheduler),
       .learning_rate = t.learning_rate,
       .warmup_ratio = t.warmup_ratio,
       .weight_decay = t.weight_decay,
       .max_grad_norm = t.max_grad_norm,
       .early_stopping_patience = t.early_stopping_patience,
       .max_seconds = t.max_seconds,
       .activations = product_,
       .seed = static_cast<uint64_t>(t.seed)},
      [&] { model_->backbone().parameters_updated(); }, callbacks);
}

void FineTune::score_model() {
  if (scored().empty()) return;
  LabelledCells source(data_.tokens, scored(), cells_.label);
  ClassPrediction prediction;
  prediction.probabilities = Tensor({source.size(), classes()}, DType::f32);
  MicroBatch micro_batch = inference_micro_batch(ctx_);
  for_each_group(source, 0, [&](std::span<const CellView> views, int64_t begin) {
    predict_cells(
        ctx_, *objective_, views,
        prediction.probabilities.view().rows(begin, begin + static_cast<int64_t>(views.size())), {},
        micro_batch);
  });
  prediction.label = most_probable_classes(prediction.probabilities.view());
  result_.scores["model"] = score(prediction);
}

void FineTune::save(const std::string& command_line, bool overwrite) {
  namespace fs = std::filesystem;
  const auto train_counts = class_counts(gather(cells_.label, parts_.train), classes());
  nlohmann::json& m = result_.metrics;
  m = {{"scored_part", result_.scored_part},
       {"train_cells", result_.train_cells},
       {"validation_cells", result_.validation_cells},
       {"test_cells", result_.test_cells},
       {"split",
        config_.data.split_by.empty() ? "stratified by label" : "by " + config_.data.split_by},
       {"trained_parameters", result_.trained_parameters},
       {"total_parameters", result_.total_parameters},
       {"steps", result_.training.steps},
       {"best_epoch", result_.training.best_epoch},
       {"seconds", result_.training.seconds},
       {"seconds_per_step", result_.training.seconds_per_step},
       {"peak_rss_bytes", peak_resident_bytes()}};
  for (const auto& [name, metrics] : result_.scores)
    m["scores"][name] = metrics_json(metrics, cells_.labels);

  AdapterBundle bundle;
  bundle.base_path = fs::absolute(config_.base_model).lexically_normal().string();
  bundle.base_fingerprint = model_->fingerprint();
  bundle.base_kind = std::string(model_->backbone().kind());
  bundle.has_adapter = adapter_ != nullptr;
  if (adapter_) bundle.options = adapter_->options();
  bundle.labels = cells_.labels;
  bundle.label_counts = train_counts;
  bundle.preprocess = preparation_.to_json();
  bundle.metrics = m;
  bundle.genes = data_.genes;
  const auto tensors = baselines_->tensors();
  for (const auto& [name, tensor] : tensors) bundle.baselines.push_back({name, tensor.view()});
  bundle.provenance = {{"command_line", command_line},
                       {"version", kVersion},
                       {"git", kGitHash},
                       {"seed", config_.train.seed},
                       {"data", config_.data.train},
                       {"label_key", config_.data.label_key},
                       {"trainable", config_.train.trainable}};
  result_.adapter = (fs::path(config_.output_dir) / "adapter").string();
  save_adapter(result_.adapter, bundle, adapter_.get(), model_->backbone(), saved_,
               overwrite ? Overwrite::replace : Overwrite::refuse);
}

FineTuneResult FineTune::run(const std::string& command_line, bool overwrite) {
  cells_ = select_labelled_cells(file_, config_.data);
  parts_ = split_cells(cells_, config_);
  open_model();
  read();
  result_.labels = cells_.labels;
  result_.train_cells = static_cast<int64_t>(parts_.train.size());
  result_.validation_cells = static_cast<int64_t>(parts_.validation.size());
  result_.test_cells = static_cast<int64_t>(parts_.test.size());
  result_.scored_part = parts_.test.empty() ? "validation" : "test";
  score_baselines();
  score_frozen();
  graft();
  learn();
  score_model();
  save(command_line, overwrite);
  return std::move(result_);
}

}  // namespace

FineTuneResult fine_tune(Context& ctx, const RunConfig& config, const std::string& command_line,
                         bool overwrite, const RunEvents& events) {
  return FineTune(ctx, config, events).run(command_line, overwrite);
}

}  // namespace scgraft
