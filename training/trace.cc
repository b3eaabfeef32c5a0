// SPDX-License-Identifier: Apache-2.0
#include "training/trace.h"

#include <cmath>
#include <cstring>
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

namespace scgraft {
namespace {

constexpr double kEcsThreshold = 0.3;
constexpr double kTemperature = 0.5;

// The inputs, checked and packed.
struct Case {
  int64_t batch = 0;
  int64_t seq = 0;
  std::vector<std::vector<int32_t>> genes;
  std::vector<std::vector<float>> values, targets;
  std::vector<std::vector<uint8_t>> masked;
  std::vector<std::vector<int64_t>> position;  // column of each token
  std::vector<int32_t> labels;
  std::vector<float> class_weight;
  double mask_value = -1;
};

const Tensor* optional_input(const std::map<std::string, Tensor>& inputs, const char* name) {
  const auto it = inputs.find(name);
  return it == inputs.end() ? nullptr : &it->second;
}

const Tensor& input(const std::map<std::string, Tensor>& inputs, const char* name) {
  const Tensor* t = optional_input(inputs, name);
  if (t == nullptr)
    throw DataError(cat("the inputs have no array \"", name,
                        "\"; trace needs src, values and src_key_padding_mask"),
                    "E-TRACE-INPUT");
  return *t;
}

double element(const Tensor& t, int64_t i) {
  double value = 0;
  visit_any(t.dtype(), [&]<class T>(Type<T>) {
    if constexpr (std::is_arithmetic_v<T>) value = static_cast<double>(t.as<T>()[i]);
  });
  return value;
}

Case read_case(const std::map<std::string, Tensor>& inputs, double mask_value) {
  Case c;
  c.mask_value = mask_value;
  const Tensor& src = input(inputs, "src");
  const Tensor& values = input(inputs, "values");
  const Tensor& padding = input(inputs, "src_key_padding_mask");
  const Tensor* targets = optional_input(inputs, "target_values");
  const Tensor* labels = optional_input(inputs, "celltype_labels");
  const Tensor* weights = optional_input(inputs, "class_weight");
  require<DataError>(src.rank() == 2, "src must be [batch, seq], got ", src.shape());
  for (const Tensor* t : {&values, &padding, targets})
    require<DataError>(t == nullptr || t->shape() == src.shape(),
                       "values, src_key_padding_mask and ", "target_values must be ", src.shape(),
                       " like src, got ", t == nullptr ? Shape{} : t->shape());
  c.batch = src.dim(0);
  c.seq = src.dim(1);
  require<DataError>(labels == nullptr || labels->shape() == Shape{c.batch},
                     "celltype_labels must be [", c.batch, "]");
  for (int64_t b = 0; b < c.batch; ++b) {
    auto& genes = c.genes.emplace_back();
    auto& value = c.values.emplace_back();
    auto& target = c.targets.emplace_back();
    auto& masked = c.masked.emplace_back();
    auto& position = c.position.emplace_back();
    for (int64_t s = 0; s < c.seq; ++s) {
      const int64_t i = b * c.seq + s;
      if (element(padding, i) != 0) continue;
      genes.push_back(static_cast<int32_t>(element(src, i)));
      value.push_back(static_cast<float>(element(values, i)));
      if (targets != nullptr) {
        target.push_back(static_cast<float>(element(*targets, i)));
        masked.push_back(static_cast<double>(value.back()) == c.mask_value ? 1 : 0);
      }
      position.push_back(s);
    }
    c.labels.push_back(labels == nullptr ? -1 : static_cast<int32_t>(element(*labels, b)));
  }
  if (weights != nullptr)
    for (int64_t i = 0; i < weights->numel(); ++i)
      c.class_weight.push_back(static_cast<float>(element(*weights, i)));
  return c;
}

// In host memory.
Tensor copy_of(ConstTensorView view) {
  Tensor out(view.shape(), view.dtype());
  copy(view, out.view());
  return out;
}

// Packed rows [tokens, ...] to padded [batch, seq, ...], zeros at padding.
Tensor padded(const Case& c, ConstTensorView packed, int64_t width) {
  Tensor out(width > 0 ? Shape{c.batch, c.seq, width} : Shape{c.batch, c.seq}, DType::f32);
  const Tensor host = copy_of(packed);
  const int64_t n = width > 0 ? width : 1;
  int64_t token = 0;
  for (int64_t b = 0; b < c.batch; ++b)
    for (int64_t s : c.position[static_cast<size_t>(b)]) {
      std::memcpy(out.as<float>() + (b * c.seq + s) * n, host.as<float>() + token * n,
                  static_cast<size_t>(n) * sizeof(float));
      ++token;
    }
  return out;
}

Tensor scalar(double value) {
  Tensor out(Shape{}, DType::f32);
  out.as<float>()[0] = static_cast<float>(value);
  return out;
}

double sum(ConstTensorView losses) {
  const Tensor host = copy_of(losses);
  double total = 0;
  for (int64_t i = 0; i < host.numel(); ++i) total += static_cast<double>(host.as<float>()[i]);
  return total;
}

// One folder, one batch, one pass.
class Tracer {
 public:
  Tracer(Context& ctx, ScgptModel& model, const Case& c, std::map<std::string, Tensor>& out)
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
  std::map<std::string, Tensor>& out_;
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
  return sum(loss) / weight;
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
    out_[name] = padded(case_, view, view.dim(1));
  };
  const EncodeOptions encode{.save = learn, .tap = &tap};
  const TensorView x = take({tokens, dim});
  net_.encode(ctx_, batch_, encode, x);
  out_["transformer_output"] = padded(case_, x, dim);
  const TensorView cell = take({cells, dim});
  pool(ctx_, Pooling::cls, x, {}, packing, cell);
  out_["out_cell_emb"] = copy_of(cell);

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
    out_["out_mlm_output"] = padded(case_, flat, 0);
    if (has_targets()) {
      masked_mse(ctx_, flat, batch_.targets(), batch_.masked(), packing, mse_scale, cell_loss,
                 flat);
      out_["loss_mse"] = scalar(sum(cell_loss) * mse_scale);
      if (multi) net_.decoder()->backward(ctx_, saved, y, packing, dx);
    }
  }
  if (net_.mvc() != nullptr) {
    const TensorView y = take({tokens});
    MvcDecoder::Saved saved;
    net_.mvc()->forward(ctx_, net_.gene_rows(), cell, batch_, y, &saved);
    out_["out_mvc_output"] = padded(case_, y, 0);
    if (has_targets()) {
      masked_mse(ctx_, y, batch_.targets(), batch_.masked(), packing, mse_scale, cell_loss, y);
      out_["loss_mvc"] = scalar(sum(cell_loss) * mse_scale);
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
  out_["out_loss_ecs"] = scalar(sum(one));
  contrastive(ctx_, cell, cell, kTemperature, 10.0, one, multi ? dcell : TensorView(),
              multi ? dcell : TensorView());
  out_["out_loss_cce"] = scalar(sum(one));

  if (net_.classifier() != nullptr) {
    Classifier& head = *net_.classifier();
    const TensorView logits = take({cells, head.classes()});
    Classifier::Saved saved;
    head.forward(ctx_, cell, batch_.cell_rows(), logits, &saved);
    out_["out_cls_output"] = copy_of(logits);
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

std::map<std::string, Tensor> trace_checkpoint(Context& ctx, const std::string& folder,
                                               const std::map<std::string, Tensor>& inputs,
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
  const Case c = read_case(inputs, model.config.mask_value);

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

  std::map<std::string, Tensor> out;
  Tracer(ctx, model, c, out).run(options.gradient);
  std::map<const Parameter*, bool> in_packed;
  for (const auto& [name, parts] : scpeft.packed) {
    if (!options.gradient) break;
    int64_t rows = 0;
    for (const Parameter* p : parts) rows += p->grad.dim(0);
    Tensor packed({rows, parts.front()->grad.dim(1)}, DType::f32);
    int64_t row = 0;
    for (const Parameter* p : parts) {
      copy(std::as_const(p->grad).view(), packed.view().rows(row, row + p->grad.dim(0)));
      row += p->grad.dim(0);
      in_packed[p] = true;
    }
    out["grad." + name] = std::move(packed);
  }
  for (const Parameter* p : trained)
    if (!in_packed.contains(p)) out["grad." + p->name] = p->grad.to(Device::cpu());
  return out;
}

}  // namespace scgraft
