// SPDX-License-Identifier: Apache-2.0
#include "training/pretrain.h"

#include <cmath>
#include <numeric>

#include "io/h5ad_facts.h"
#include "model/scgpt/cells.h"
#include "model/scgpt/token_reader.h"
#include "training/cell_sources.h"
#include "training/labelled_data.h"
#include "training/masked_expression.h"
#include "training/parameter_block.h"
#include "training/precision.h"
#include "training/predict.h"
#include "training/split.h"

namespace scgraft {
namespace {

// A fresh network whose vocabulary is the genes of the file.
ScgptModel fresh_model(const H5ad& file, const RunConfig& config, const std::string& preset) {
  ScgptModel model;
  model.config = ScgptConfig::preset(preset);
  model.config.dropout = 0;  // a small model on few cells underfits; args.json can say otherwise
  if (config.data.max_genes > 0) model.config.max_seq_len = config.data.max_genes + 1;
  const SlotChoice slot = choose_slot(file, config.data.layer);
  model.vocabulary.append_specials();
  for (const std::string& gene : gene_names(file, slot.slot, config.data.gene_key))
    if (!gene.empty()) model.vocabulary.append(gene);
  model.config.vocab = model.vocabulary.size();
  model.config.check(preset);
  model.network = std::make_unique<ScgptNetwork>(
      model.config, ScgptNetwork::Heads{.decoder = true, .mvc = true, .classes = 0},
      scgpt_initialiser(static_cast<uint64_t>(config.train.seed)));
  return model;
}

}  // namespace

PretrainResult pretrain(Context& ctx, const RunConfig& config, const PretrainOptions& options,
                        const RunEvents& events) {
  const RunConfig::Train& t = config.train;
  const auto seed = static_cast<uint64_t>(t.seed);
  const H5ad file = H5ad::open(config.data.train);
  ScgptModel model =
      options.start.empty() ? fresh_model(file, config, options.preset) : load_scgpt(options.start);
  model.network->move_to(ctx.device());
  const DType product = product_dtype(t.precision, ctx.device());
  model.network->set_precision(product);
  model.network->redraw_features(t.redraw_interval);
  model.network->set_recompute(t.activations == "recompute");
  for (Parameter* p : model.network->parameters().all())
    if (p->value.is_shared()) p->value = p->value.clone();  // a mapped file is read-only

  const std::vector<uint8_t> keep = rows_of_subset(file, config.data.subset);
  std::vector<int64_t> rows;
  for (size_t i = 0; i < keep.size(); ++i)
    if (keep[i] != 0) rows.push_back(static_cast<int64_t>(i));
  Preparation preparation = scgpt_preparation(model.config);
  prepare_as(config, preparation);
  if (config.data.max_genes > 0) preparation.max_length = config.data.max_genes + 1;
  CellData data;
  HostContext host(ctx);
  TokenReader reader(host.get(), file, model.vocabulary, model.cls_id(), preparation);
  read_cells(reader, file, rows, events, data);

  Split split;
  if (config.data.val_fraction > 0) {
    split = stratified_split(std::vector<int32_t>(rows.size(), 0), config.data.val_fraction, seed);
  } else {
    split.train.resize(rows.size());
    std::iota(split.train.begin(), split.train.end(), 0);
  }
  const MaskOptions mask = {.ratio = t.mask_ratio,
                            .mask_value = static_cast<float>(model.config.mask_value),
                            .seed = seed};
  MaskedCells train_cells(data.tokens, split.train, mask);
  MaskedCells validation(data.tokens, split.validation, mask);

  MaskedExpression objective(*model.network);
  ParameterBlock block(model.network->parameters().all(), t.weight_decay);
  model.network->parameters_updated();
  PretrainResult result;
  std::vector<double> losses;
  TrainerCallbacks callbacks;
  callbacks.stop_requested = events.stop_requested;
  callbacks.on_step = [&](const StepReport& report) {
    losses.push_back(report.loss);
    if (events.step) events.step(report);
  };
  if (t.activations == "auto") callbacks.need_less_memory = recomputing(*model.network);
  const TrainerOptions trainer = {.epochs = t.epochs,
                                  .max_steps = t.max_steps,
                                  .batch_size = t.micro_batch_size,
                                  .accumulation = t.gradient_accumulation_steps,
                                  .schedule = parse_schedule(t.lr_scheduler),
                                  .learning_rate = t.learning_rate,
                                  .warmup_ratio = t.warmup_ratio,
                                  .weight_decay = t.weight_decay,
                                  .max_grad_norm = t.max_grad_norm,
                                  .max_seconds = t.max_seconds,
                                  .activations = product,
                                  .seed = seed};
  result.training = train(
      ctx, objective, train_cells, block, trainer, [&] { model.network->parameters_updated(); },
      callbacks);
  MicroBatch micro_batch = inference_micro_batch(ctx);
  result.validation_loss = split.validation.empty()
                               ? std::nan("")
                               : evaluate(ctx, objective, validation, 0, micro_batch).mean();
  result.cells = static_cast<int64_t>(rows.size());
  result.genes = model.vocabulary.size();
  result.parameters = model.network->parameters().numel();
  if (!losses.empty()) {
    result.first_loss = losses.front();
    const size_t tail = std::max<size_t>(1, losses.size() / 10);
    result.last_loss =
        std::accumulate(losses.end() - static_cast<int64_t>(tail), losses.end(), 0.0) /
        static_cast<double>(tail);
  }
  save_scgpt(config.output_dir, model);
  return result;
}

}  // namespace scgraft
