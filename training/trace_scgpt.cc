// SPDX-License-Identifier: Apache-2.0
#include <filesystem>
#include <vector>

#include "adapters/scpeft.h"
#include "io/checkpoint.h"
#include "io/json.h"
#include "kernels/add.h"
#include "kernels/contrastive.h"
#include "kernels/cross_entropy.h"
#include "kernels/ecs.h"
#include "kernels/masked_mse.h"
#include "kernels/pool.h"
#include "model/scgpt/load.h"
#include "training/trace_arrays.h"
#include "training/trace_kinds.h"

namespace scgraft {
namespace {

constexpr double kEcsThreshold = 0.3;
constexpr double kTemperature = 0.5;

// The inputs, checked and packed.
struct Case {
  TokenGrid grid;
  std::vector<std::vector<int32_t>> genes = {};
  std::vector<std::vector<float>> values = {}, targets = {};
  std::vector<std::vector<uint8_t>> masked = {};
  std::vector<int32_t> labels = {};
  std::vector<float> class_weight = {};
  std::vector<uint8_t> visible = {};  // one mark per token, or none
};

// keep_padding: padding is part of the cells, and no token sees it.
Case read_case(const TraceArrays& inputs, double mask_value, bool keep_padding) {
  constexpr const char* kNeeded = "src, values and src_key_padding_mask";
  const Tensor& padding = required_input(inputs, "src_key_padding_mask", kNeeded);
  Case c{.grid = TokenGrid(padding, false)};
  if (keep_padding) {
    c.grid.keep_all();
    for (int64_t i = 0; i < padding.numel(); ++i)
      c.visible.push_back(element(padding, i) == 0 ? 1 : 0);
  }
  const Tensor& src = required_input(inputs, "src", kNeeded);
  const Tensor& values = required_input(inputs, "values", kNeeded);
  c.grid.require_grid(src, "src");
  c.grid.require_grid(values, "values");
  c.genes = c.grid.tokens_of<int32_t>(src);
  c.values = c.grid.tokens_of<float>(values);
  c.targets.resize(c.genes.size());
  c.masked.resize(c.genes.size());
  if (const Tensor* targets = optional_input(inputs, "target_values")) {
    c.grid.require_grid(*targets, "target_values");
    c.targets = c.grid.tokens_of<float>(*targets);
    for (size_t b = 0; b < c.values.size(); ++b)
      for (const float value : c.values[b])
        c.masked[b].push_back(static_cast<double>(value) == mask_value ? 1 : 0);
  }
  const Tensor* labels = optional_input(inputs, "celltype_labels");
  require<DataError>(labels == nullptr || labels->shape() == Shape{c.grid.batch},
                     "celltype_labels must be [", c.grid.batch, "]");
  for (int64_t b = 0; b < c.grid.batch; ++b)
    c.labels.push_back(labels == nullptr ? -1 : static_cast<int32_t>(element(*labels, b)));
  if (const Tensor* weights = optional_input(inputs, "class_weight"))
    for (int64_t i = 0; i < weights->numel(); ++i)
      c.class_weight.push_back(static_cast<float>(element(*weights, i)));
  return c;
}

// One folder, one batch, one pass.
class Tracer {
 public:
  Tracer(Context& ctx, ScgptModel& model, const Case& c, TraceArrays& out)
      : ctx_(ctx), model_(model), net_(*model.network), case_(c), out_(out) {
    std::vector<CellView> cells;
    for (size_t b = 0; b < c.genes.size(); ++b)
      cells.push_back({.cell = static_cast<int64_t>(b),
                       .genes = c.genes[b],
                       .values = c.values[b],
                       .targets = c.targets[b],
                       .masked = c.masked[b],
                       .label = c.labels[b]});
    batch_.assign(ctx, cells);
    const ConstTensorView weights =
        view_of(c.class_weight.data(), Shape{static_cast<int64_t>(c.class_weight.size())});
    class_weight_ = Tensor(weights.shape(), weights.dtype(), ctx.device());
    copy(ctx, weights, class_weight_.view());
  }

  void run(const std::optional<std::string>& gradient);

 private:
  TensorView take(Shape shape) { return ctx_.activations().take(shape, DType::f32); }
  bool has_labels() const { return !case_.labels.empty() && case_.labels.front() >= 0; }
  bool has_targets() const { return !batch_.targets().empty() && batch_.targets().numel() > 0; }
  // Cross entropy with or without class weights; adds its gradient to dlogits when wanted.
  double classification(ConstTensorView logits, bool weighted, TensorView dlogits);

  Context& ctx_;
  ScgptModel& model_;
  ScgptNetwork& net_;
  const Case& case_;
  TraceArrays& out_;
  TokenBatch batch_;
  Tensor class_weight_;  // on the device; [0] when there is none
};

double Tracer::classification(ConstTensorView logits, bool weighted, TensorView dlogits) {
  const int64_t cells = batch_.cells();
  double weight = 0;
  for (int32_t label : case_.labels) {
    require<DataError>(label < logits.dim(1), "celltype_labels holds ", label, ", the head has ",
                       logits.dim(1), " classes");
    weight +=
        weighted ? static_cast<double>(case_.class_weight.at(static_cast<size_t>(label))) : 1.0;
  }
  ConstTensorView weights;
  if (weighted) {
    weights = std::as_const(class_weight_).view();
    require<DataError>(weights.numel() == logits.dim(1), "class_weight has ", weights.numel(),
                       " entries, the head has ", logits.dim(1), " classes");
  }
  const TensorView loss = take({cells});
  cross_entropy(ctx_, logits, batch_.labels(), weights, 1.0 / weight, loss, dlogits);
  return sum_of(loss) / weight;
}

void Tracer::run(const std::optional<std::string>& gradient) {
  Arena::Scope activations(ctx_.activations());
  const int64_t tokens = batch_.tokens();
  const int64_t cells = batch_.cells();
  const int64_t dim = net_.dim();
  const bool learn = gradient.has_value();
  const bool multi = learn && *gradient == "multi";
  const Packing packing = batch_.packing();

  const Tap tap = [&](const std::string& name, ConstTensorView view) {
    out_[name] = case_.grid.padded(view, view.dim(1));
  };
  const EncodeOptions encode{.save = learn, .tap = &tap, .visible = case_.visible};
  const TensorView x = take({tokens, dim});
  net_.encode(ctx_, batch_, encode, x);
  out_["transformer_output"] = case_.grid.padded(x, dim);
  const TensorView cell = take({cells, dim});
  pool(ctx_, Pooling::cls, x, {}, packing, cell);
  out_["out_cell_emb"] = host_copy(cell);

  const TensorView dx = take({tokens, dim});
  const TensorView dcell = take({cells, dim});
  set_zero(ctx_, dx);
  set_zero(ctx_, dcell);
  int64_t masked = 0;
  if (has_targets())
    for (const uint8_t hidden : batch_.host_masked()) masked += hidden;
  const double mse_scale = masked > 0 ? 1.0 / static_cast<double>(masked) : 0.0;
  const TensorView cell_loss = take({cells});
  const TensorView part = take({cells, dim});

  if (net_.decoder() != nullptr) {
    const TensorView y = take({tokens, 1});
    ExpressionDecoder::Saved saved;
    net_.decoder()->forward(ctx_, x, packing, y, &saved);
    const TensorView flat = y.reshape({tokens});
    out_["out_mlm_output"] = case_.grid.padded(flat, 0);
    if (has_targets()) {
      masked_mse(ctx_, flat, batch_.targets(), batch_.masked(), packing, mse_scale, cell_loss,
                 flat);
      out_["loss_mse"] = scalar(sum_of(cell_loss) * mse_scale);
      if (multi) net_.decoder()->backward(ctx_, saved, y, packing, dx);
    }
  }
  if (net_.mvc() != nullptr) {
    const TensorView y = take({tokens});
    MvcDecoder::Saved saved;
    net_.mvc()->forward(ctx_, net_.gene_rows(), cell, batch_, y, &saved);
    out_["out_mvc_output"] = case_.grid.padded(y, 0);
    if (has_targets()) {
      masked_mse(ctx_, y, batch_.targets(), batch_.masked(), packing, mse_scale, cell_loss, y);
      out_["loss_mvc"] = scalar(sum_of(cell_loss) * mse_scale);
      if (multi) {
        const TensorView dgene = take(net_.gene_rows().shape());
        net_.mvc()->backward(ctx_, saved, y, batch_, part, dgene);
        net_.add_gene_gradient(ctx_, dgene);
        add(ctx_, dcell, part, dcell);
      }
    }
  }
  const TensorView one = take({1});
  ecs(ctx_, cell, kEcsThreshold, 10.0, one, multi ? dcell : TensorView());
  out_["out_loss_ecs"] = scalar(sum_of(one));
  contrastive(ctx_, cell, cell, kTemperature, 10.0, one, multi ? dcell : TensorView(),
              multi ? dcell : TensorView());
  out_["out_loss_cce"] = scalar(sum_of(one));

  if (net_.classifier() != nullptr) {
    Classifier& head = *net_.classifier();
    const TensorView logits = take({cells, head.classes()});
    Classifier::Saved saved;
    head.forward(ctx_, cell, batch_.cell_rows(), logits, &saved);
    out_["out_cls_output"] = host_copy(logits);
    if (has_labels()) {
      const bool weights = !case_.class_weight.empty();
      const TensorView dlogits = take(logits.shape());
      // The last call leaves the gradient that is wanted.
      const bool weighted_gradient = learn && *gradient != "cls";
      require<DataError>(!weighted_gradient || weights, "the inputs have no class_weight, which ",
                         "this gradient needs");
      if (weights) {
        const double loss = classification(logits, true, dlogits);
        out_["loss_cls_weighted"] = scalar(loss);
        out_["loss"] = scalar(loss);
      }
      if (weighted_gradient) {
        out_["loss_cls"] = scalar(classification(logits, false, {}));
      } else {
        out_["loss_cls"] = scalar(classification(logits, false, dlogits));
      }
      if (learn) {
        head.backward(ctx_, saved, dlogits, batch_.cell_rows(), part);
        add(ctx_, dcell, part, dcell);
      }
    }
  }
  if (!learn) return;
  const TensorView dfirst = take({tokens, dim});
  pool_backward(ctx_, Pooling::cls, dcell, {}, packing, dfirst);
  add(ctx_, dx, dfirst, dx);
  net_.encode_backward(ctx_, batch_, encode, dx);
}

}  // namespace

TraceArrays trace_scgpt(Context& ctx, const std::string& folder, const TraceArrays& inputs,
                        const TraceOptions& options) {
  namespace fs = std::filesystem;
  if (options.gradient && *options.gradient != "" && *options.gradient != "cls" &&
      *options.gradient != "multi")
    throw ConfigError(cat("--grad knows \"cls\" and \"multi\", got \"", *options.gradient, "\""),
                      "E-TRACE-GRADIENT");
  ScgptModel model = load_scgpt(folder, {.claims = is_scpeft_tensor});
  model.network->set_precision(options.product);
  model.network->move_to(ctx.device());
  ScpeftAdapter scpeft;
  const std::string peft = (fs::path(folder) / "peft_config.json").string();
  if (fs::exists(peft))
    scpeft = read_scpeft_adapter(read_json(peft, FileKind::model), open_checkpoint(folder),
                                 *model.network);
  if (scpeft.adapter) scpeft.adapter->attach(*model.network);
  // What the original computes for padding shows in the rows that join it.
  const bool prefix = scpeft.adapter && scpeft.adapter->kind() == "prefix";
  const Case c = read_case(inputs, model.config.mask_value, prefix);

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

  TraceArrays out;
  Tracer(ctx, model, c, out).run(options.gradient);
  if (!options.gradient) return out;
  add_gradients(scpeft, trained, out);
  return out;
}

}  // namespace scgraft
