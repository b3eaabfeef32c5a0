// SPDX-License-Identifier: Apache-2.0
#include <cstring>
#include <filesystem>
#include <numeric>
#include <vector>

#include "io/checkpoint.h"
#include "io/json.h"
#include "model/scbert/load.h"
#include "training/trace_kinds.h"

namespace scgraft {
namespace {

constexpr const char* kNeeded = "tokens, or input_tokens where some are masked";

// Packed rows [tokens, heads * width] to [batch, heads, seq, width].
Tensor by_head(const Tensor& rows, int64_t heads) {
  const int64_t batch = rows.dim(0), seq = rows.dim(1), width = rows.dim(2) / heads;
  Tensor out({batch, heads, seq, width}, DType::f32);
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t s = 0; s < seq; ++s)
        std::memcpy(out.as<float>() + ((b * heads + h) * seq + s) * width,
                    rows.as<float>() + ((b * seq + s) * heads + h) * width,
                    static_cast<size_t>(width) * sizeof(float));
  return out;
}

// One folder, one batch, one pass.
class Tracer {
 public:
  Tracer(Context& ctx, ScbertNetwork& net, const TraceArrays& inputs, TraceArrays& out)
      : ctx_(ctx), net_(net), inputs_(inputs), out_(out), grid_(ids(), true) {
    grid_.keep_all();  // the bin 0 is a token too
    const auto tokens = grid_.tokens_of<int32_t>(ids());
    std::vector<float> places(static_cast<size_t>(grid_.seq));
    std::iota(places.begin(), places.end(), 0.0f);
    std::vector<CellView> cells;
    for (size_t b = 0; b < tokens.size(); ++b)
      cells.push_back({.cell = static_cast<int64_t>(b), .genes = tokens[b], .values = places});
    batch_.assign(ctx, cells);
  }

  void run(bool learn);

 private:
  TensorView take(Shape shape) { return ctx_.activations().take(shape, DType::f32); }
  const Tensor& ids() const {
    if (const Tensor* masked = optional_input(inputs_, "input_tokens")) return *masked;
    return required_input(inputs_, "tokens", kNeeded);
  }
  // Writes the loss; whether its gradient is wanted.
  bool loss(ConstTensorView logits, const std::vector<int32_t>& labels, bool learn,
            TensorView dlogits);
  // Each head: what it computes from the encoder's rows x, and with `learn` the gradient of its
  // loss into dx.
  void bins(ConstTensorView x, bool learn, TensorView dx);
  void classes(ConstTensorView x, bool learn, TensorView dx);

  Context& ctx_;
  ScbertNetwork& net_;
  const TraceArrays& inputs_;
  TraceArrays& out_;
  TokenGrid grid_;
  TokenBatch batch_;
};

bool Tracer::loss(ConstTensorView logits, const std::vector<int32_t>& labels, bool learn,
                  TensorView dlogits) {
  if (labels.empty()) {
    require<DataError>(!learn, "the inputs have no labels, which a gradient needs");
    return false;
  }
  out_["loss"] = scalar(mean_cross_entropy(ctx_, logits, labels, dlogits));
  return learn;
}

void Tracer::bins(ConstTensorView x, bool learn, TensorView dx) {
  const Packing packing = batch_.packing();
  const TensorView logits = take({x.dim(0), net_.bins()->out()}), dlogits = take(logits.shape());
  net_.bins()->forward(ctx_, x, packing, false, logits);
  out_["logits"] = grid_.padded(logits, logits.dim(1));
  std::vector<int32_t> labels;
  if (const Tensor* given = optional_input(inputs_, "labels")) {
    grid_.require_grid(*given, "labels");
    const auto ignored = static_cast<int32_t>(net_.config().tokens - 1);  // the mask itself
    for (const auto& row : grid_.tokens_of<int32_t>(*given))
      for (const int32_t label : row) labels.push_back(label == ignored ? -1 : label);
  }
  if (loss(logits, labels, learn, dlogits))
    net_.bins()->backward(ctx_, x, dlogits, packing, false, false, dx);
}

void Tracer::classes(ConstTensorView x, bool learn, TensorView dx) {
  const Packing packing = net_.encoded_packing(), cells = batch_.cell_rows();
  RowClassifier& head = *net_.classifier();
  const TensorView logits = take({batch_.cells(), head.classes()}), dlogits = take(logits.shape());
  RowClassifier::Saved saved;
  head.forward(ctx_, x, packing, cells, logits, &saved);
  out_["logits"] = host_copy(logits);
  std::vector<int32_t> labels;
  if (const Tensor* given = optional_input(inputs_, "labels"))
    for (int64_t b = 0; b < given->numel(); ++b)
      labels.push_back(static_cast<int32_t>(element(*given, b)));
  require<DataError>(labels.empty() || static_cast<int64_t>(labels.size()) == grid_.batch,
                     "labels must be [", grid_.batch, "]");
  if (loss(logits, labels, learn, dlogits)) head.backward(ctx_, saved, dlogits, packing, cells, dx);
}

void Tracer::run(bool learn) {
  Arena::Scope activations(ctx_.activations());
  const Tap tap = [&](const std::string& name, ConstTensorView view) {
    Tensor rows = grid_.padded(view, view.dim(1));
    out_[name] =
        name.ends_with("_favor_out") ? by_head(rows, net_.config().heads) : std::move(rows);
  };
  const EncodeOptions encode{.save = learn, .tap = &tap};
  const TensorView x = take({net_.encoded_rows(batch_), net_.dim()}), dx = take(x.shape());
  net_.encode(ctx_, batch_, encode, x);
  out_["final_norm"] = grid_.padded(x, x.dim(1));
  out_["encodings"] = out_["final_norm"].clone();
  if (net_.bins() != nullptr)
    bins(x, learn, dx);
  else if (net_.classifier() != nullptr)
    classes(x, learn, dx);
  else
    require<DataError>(!learn, "this checkpoint has no head, so there is no loss of it");
  if (learn) net_.encode_backward(ctx_, batch_, encode, dx);
}

}  // namespace

TraceArrays trace_scbert(Context& ctx, const std::string& folder, const TraceArrays& inputs,
                         const TraceOptions& options) {
  if (options.gradient && !options.gradient->empty())
    throw ConfigError(
        cat("--grad of an scBERT checkpoint takes no name, got \"", *options.gradient, "\""),
        "E-TRACE-GRADIENT");
  const ScbertModel model = load_scbert(folder, {.claims = is_scpeft_tensor});
  const std::string config = (std::filesystem::path(folder) / "config.json").string();
  const ScpeftAdapter scpeft = read_scpeft_scbert_adapter(read_json(config, FileKind::model),
                                                          open_checkpoint(folder), *model.network);
  if (options.upstream) {
    model.network->set_stabiliser(FavorStabiliser::batch);
    model.network->keep_prefix(model.network->classifier() != nullptr);
  }
  model.network->set_precision(options.product);
  model.network->move_to(ctx.device());
  if (scpeft.adapter) {
    move_to(scpeft.adapter->parameters(), ctx.device());
    scpeft.adapter->attach(*model.network);
  }
  std::vector<Parameter*> trained = model.network->parameters().all();
  std::erase_if(trained, [](const Parameter* p) { return p->name.ends_with("projection_matrix"); });
  if (scpeft.adapter)
    for (Parameter* p : scpeft.adapter->parameters()) trained.push_back(p);
  if (options.gradient) make_trainable(trained);
  TraceArrays out;
  Tracer(ctx, *model.network, inputs, out).run(options.gradient.has_value());
  if (!options.gradient) return out;
  add_gradients(scpeft, trained, out);
  const auto row = out.find("grad.to_out.conv1.weight");
  if (row != out.end()) {  // a convolution in the file
    Tensor four({1, 1, 1, row->second.dim(1)}, DType::f32);
    copy(row->second.view(), four.view().reshape(row->second.shape()));
    row->second = std::move(four);
  }
  return out;
}

}  // namespace scgraft
