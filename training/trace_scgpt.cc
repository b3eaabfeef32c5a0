// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <filesystem>
#include <vector>

#include "adapters/scpeft.h"
#include "io/checkpoint.h"
#include "io/json.h"
#include "model/scgpt/load.h"
#include "model/scgpt/perturbation.h"
#include "training/trace_arrays.h"
#include "training/trace_kinds.h"
#include "training/trace_scgpt_pass.h"

namespace scgraft {
namespace {

ScgptLosses losses_of(const std::string& gradient, const ScgptNetwork& net) {
  if (gradient == "cls") return {.classes = true};
  if (gradient == "multi")
    return {.expression = true,
            .similarity = true,
            .contrastive = true,
            .classes = true,
            .weighted = true};
  if (gradient == "total")
    return {.expression = true, .zeros = true, .similarity = true, .adversary = true};
  if (!gradient.empty())
    throw ConfigError(cat("--grad knows \"cls\", \"multi\" and \"total\", got \"", gradient, "\""),
                      "E-TRACE-GRADIENT");
  if (net.config().flags > 0) return {.expression = true};
  return {.classes = true, .weighted = true};
}

// True where the original's padding changes results: it counts in the moments of a batch and in
// every pooling but that of the first token.
bool padding_counts(const ScgptConfig& config) {
  return config.cell_style != Pooling::cls || config.batch_norm || config.domains > 0;
}

// Cells of one domain go through its batch norm together. The original takes the domain of the
// first cell for all of them.
void require_one_domain(const ScgptCase& c) {
  for (const int32_t label : c.batches)
    if (label != c.batches.front())
      throw DataError(cat("batch_labels holds ", c.batches.front(), " and ", label,
                          ": cells of one pass must be of one domain"),
                      "E-TRACE-INPUT");
}

// The row of padding has no gradient in the original, wherever padding is.
void block_row(TraceArrays& arrays, const std::string& name, int64_t row) {
  const auto found = arrays.find("grad." + name);
  if (found == arrays.end() || row < 0 || row >= found->second.dim(0)) return;
  float* first = found->second.as<float>() + row * found->second.dim(1);
  std::fill_n(first, found->second.dim(1), 0.0f);
}

// What batch norms have collected, once the pass that trains them is done.
void tell_buffers(ScgptNetwork& net, TraceArrays& out) {
  for (const Parameter* p : net.buffers().all()) {
    std::string name = p->name;  // dsbn.bns.1.running_mean
    if (!name.starts_with("dsbn.bns.")) continue;
    name = name.substr(9);
    std::replace(name.begin(), name.end(), '.', '_');
    out["after_train_bn" + name] = p->value.to(Device::cpu());
  }
}

// Cells by genes, as data sets have them: the original's call for predictions.
void predict_cells(Context& ctx, ScgptNetwork& net, const TraceArrays& inputs, bool all_genes,
                   TraceArrays& out) {
  constexpr const char* kNeeded = "gene_ids, gene_values and pert_flags";
  const Tensor& ids = required_input(inputs, "gene_ids", kNeeded);
  const Tensor& values = required_input(inputs, "gene_values", kNeeded);
  const Tensor& flags = required_input(inputs, "pert_flags", kNeeded);
  require<DataError>(flags.shape() == values.shape(), "pert_flags must be ", values.shape(),
                     ", got ", flags.shape());
  std::vector<int32_t> genes;
  for (int64_t i = 0; i < ids.numel(); ++i) genes.push_back(static_cast<int32_t>(element(ids, i)));
  Tensor expression(values.shape(), DType::f32), marks(values.shape(), DType::i32);
  for (int64_t i = 0; i < values.numel(); ++i) {
    expression.as<float>()[i] = static_cast<float>(element(values, i));
    marks.as<int32_t>()[i] = static_cast<int32_t>(element(flags, i));
  }
  out["pred_gene_values"] =
      predict_perturbation(ctx, net,
                           {.genes = genes,
                            .values = std::as_const(expression).view(),
                            .flags = std::as_const(marks).view()},
                           all_genes ? PredictedGenes::all : PredictedGenes::expressed);
}

}  // namespace

TraceArrays trace_scgpt(Context& ctx, const std::string& folder, const TraceArrays& inputs,
                        const TraceOptions& options) {
  namespace fs = std::filesystem;
  ScgptModel model = load_scgpt(folder, {.all_styles = true, .claims = is_scpeft_tensor});
  ScgptLosses losses;
  if (options.gradient) losses = losses_of(*options.gradient, *model.network);
  model.network->set_precision(options.product);
  model.network->move_to(ctx.device());
  const std::string peft = (fs::path(folder) / "peft_config.json").string();
  const ScpeftAdapter scpeft =
      read_scpeft_adapter(fs::exists(peft) ? read_json(peft, FileKind::model) : nlohmann::json(),
                          open_checkpoint(folder), *model.network);
  if (scpeft.adapter) scpeft.adapter->attach(*model.network);
  TraceArrays out;
  if (optional_input(inputs, "gene_values") != nullptr) {
    predict_cells(ctx, *model.network, inputs, options.all_genes, out);
    if (optional_input(inputs, "src") == nullptr) {
      require<DataError>(!options.gradient, "a gradient needs src, values and targets of tokens");
      return out;
    }
  }
  // What the original computes for padding shows in the rows that join it.
  const bool prefix =
      scpeft.adapter && scpeft.adapter->kind().find("prefix") != std::string_view::npos;
  const bool keep_padding = prefix || (options.upstream && padding_counts(model.config));
  const bool domains = model.config.domains > 0;
  const ScgptCase c = read_scgpt_case(
      inputs, {.mask_value = model.config.mask_value,
               .keep_padding = keep_padding,
               .flags = model.config.flags > 0,
               .batches = domains || model.config.batches > 0 || model.network->adversary()});
  if (domains && !options.upstream) require_one_domain(c);

  std::vector<Parameter*> trained;
  if (options.gradient) {
    if (scpeft.adapter) {
      trained = scpeft.adapter->parameters();
      if (Classifier* head = model.network->classifier())
        for (Parameter* p : head->parameters()) trained.push_back(p);
      for (const std::string& name : scpeft.trained_with_it)
        trained.push_back(model.network->parameters().find(name));
    } else {
      trained = model.network->parameters().all();
    }
    make_trainable(trained);
  }

  // Domains have batch norms that compute something else in training: both are told.
  if (domains) ScgptPass(ctx, *model.network, c, {.prefix = "eval_", .losses = false}, out).run();
  ScgptPass(ctx, *model.network, c,
            {.prefix = domains ? "train_" : "", .batch_moments = domains, .gradient = losses}, out)
      .run();
  if (domains) tell_buffers(*model.network, out);
  if (!options.gradient) return out;
  add_gradients(scpeft, trained, out);
  if (keep_padding) {
    block_row(out, "encoder.embedding.weight", model.pad_id());
    block_row(out, "value_encoder.embedding.weight", static_cast<int64_t>(model.config.pad_value));
  }
  return out;
}

}  // namespace scgraft
