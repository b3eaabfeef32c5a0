// SPDX-License-Identifier: Apache-2.0
#include <numeric>
#include <string_view>
#include <vector>

#include "kernels/pool.h"
#include "model/geneformer/load.h"
#include "training/trace_kinds.h"

namespace scgraft {
namespace {

// One folder, one batch, one pass.
class Tracer {
 public:
  Tracer(Context& ctx, GeneformerNetwork& net, const TraceArrays& inputs, TraceArrays& out)
      : ctx_(ctx),
        net_(net),
        inputs_(inputs),
        out_(out),
        grid_(required_input(inputs, "attention_mask", kNeeded), true) {
    const bool hidden = optional_input(inputs, "masked_input_ids") != nullptr;
    const char* const name = hidden ? "masked_input_ids" : "input_ids";
    const Tensor& ids = required_input(inputs, name, kNeeded);
    grid_.require_grid(ids, name);
    const auto tokens = grid_.tokens_of<int32_t>(ids);
    std::vector<std::vector<float>> ranks;
    std::vector<CellView> cells;
    for (const std::vector<int32_t>& cell : tokens) {
      ranks.emplace_back(cell.size());
      std::iota(ranks.back().begin(), ranks.back().end(), 0.0f);
    }
    for (size_t b = 0; b < tokens.size(); ++b)
      cells.push_back({.cell = static_cast<int64_t>(b), .genes = tokens[b], .values = ranks[b]});
    batch_.assign(ctx, cells);
  }

  void run(bool learn);

 private:
  static constexpr const char* kNeeded = "input_ids and attention_mask";

  TensorView take(Shape shape) { return ctx_.activations().take(shape, DType::f32); }
  // Labels of tokens, or of cells; none when the inputs have none.
  std::vector<int32_t> labels(bool of_tokens) const;
  // Names of the original: what it calls the parts of a layer.
  void tell(const std::string& name, ConstTensorView view);
  // Each head: what it computes from the encoder's rows x, and with `learn` the gradient of its
  // loss into dx.
  void words(ConstTensorView x, bool learn, TensorView dx);
  void cell_classes(ConstTensorView x, bool learn, TensorView dx);
  void token_classes(ConstTensorView x, bool learn, TensorView dx);
  bool loss(ConstTensorView logits, bool of_tokens, bool learn, TensorView dlogits);

  Context& ctx_;
  GeneformerNetwork& net_;
  const TraceArrays& inputs_;
  TraceArrays& out_;
  TokenGrid grid_;
  TokenBatch batch_;
};

std::vector<int32_t> Tracer::labels(bool of_tokens) const {
  std::vector<int32_t> all;
  const Tensor* given = optional_input(inputs_, "labels");
  if (given == nullptr) return all;
  if (of_tokens) {
    grid_.require_grid(*given, "labels");
    for (const auto& row : grid_.tokens_of<int32_t>(*given))
      all.insert(all.end(), row.begin(), row.end());
  } else {
    require<DataError>(given->shape() == Shape{grid_.batch}, "labels must be [", grid_.batch,
                       "], got ", given->shape());
    for (int64_t b = 0; b < grid_.batch; ++b)
      all.push_back(static_cast<int32_t>(element(*given, b)));
  }
  return all;
}

bool Tracer::loss(ConstTensorView logits, bool of_tokens, bool learn, TensorView dlogits) {
  const std::vector<int32_t> given = labels(of_tokens);
  if (given.empty()) {
    require<DataError>(!learn, "the inputs have no labels, which a gradient needs");
    return false;
  }
  out_["loss"] = scalar(mean_cross_entropy(ctx_, logits, given, dlogits));
  return learn;
}

void Tracer::tell(const std::string& name, ConstTensorView view) {
  constexpr std::pair<const char*, const char*> kNames[] = {{"_norm1", "_attn_output"},
                                                            {"_ffn_hidden", "_intermediate"}};
  Tensor rows = grid_.padded(view, view.dim(1));
  const auto hidden_state = [&](int64_t i) {
    out_[cat("hidden_states_", i)] = rows.clone();
    const TensorView mean = take({batch_.cells(), net_.dim()});
    pool(ctx_, Pooling::mean, view, {}, batch_.packing(), mean);
    out_[cat("cell_mean_hidden", i)] = host_copy(mean);
  };
  if (name == "embeddings") hidden_state(0);
  if (name.ends_with("_out") && !name.ends_with("_attn_out"))
    hidden_state(std::stoll(name.substr(5)) + 1);
  for (const auto& [ours, theirs] : kNames)
    if (name.ends_with(ours)) {
      out_[name.substr(0, name.size() - std::string_view(ours).size()) + theirs] = std::move(rows);
      return;
    }
  out_[name] = std::move(rows);
}

void Tracer::words(ConstTensorView x, bool learn, TensorView dx) {
  WordPrediction& head = *net_.words();
  const Packing packing = batch_.packing();
  const TensorView h = take(x.shape());
  WordPrediction::Saved saved;
  head.forward(ctx_, x, packing, h, &saved);
  const TensorView logits = take({x.dim(0), head.decoder.out()});
  head.decoder.forward(ctx_, h, packing, false, logits);
  out_["logits"] = grid_.padded(logits, logits.dim(1));
  const TensorView dlogits = take(logits.shape());
  if (!loss(logits, true, learn, dlogits)) return;
  const TensorView dh = take(x.shape());
  head.decoder.backward(ctx_, h, dlogits, packing, false, false, dh);
  head.backward(ctx_, saved, dh, packing, dx);
}

void Tracer::cell_classes(ConstTensorView x, bool learn, TensorView dx) {
  const Packing rows = batch_.cell_rows();
  const TensorView first = take({batch_.cells(), net_.dim()}), pooled = take(first.shape());
  pool(ctx_, Pooling::cls, x, {}, batch_.packing(), first);
  Pooler::Saved saved;
  net_.pooler()->forward(ctx_, first, rows, pooled, &saved);
  out_["pooler_output"] = host_copy(pooled);
  if (net_.classifier() == nullptr) return;
  const TensorView logits = take({batch_.cells(), net_.classifier()->out()});
  net_.classifier()->forward(ctx_, pooled, rows, false, logits);
  out_["logits"] = host_copy(logits);
  const TensorView dlogits = take(logits.shape());
  if (!loss(logits, false, learn, dlogits)) return;
  const TensorView dpooled = take(first.shape()), dfirst = take(first.shape());
  net_.classifier()->backward(ctx_, pooled, dlogits, rows, false, false, dpooled);
  net_.pooler()->backward(ctx_, saved, dpooled, rows, dfirst);
  pool_backward(ctx_, Pooling::cls, dfirst, {}, batch_.packing(), dx);
}

void Tracer::token_classes(ConstTensorView x, bool learn, TensorView dx) {
  const Packing packing = batch_.packing();
  const TensorView logits = take({x.dim(0), net_.classifier()->out()});
  net_.classifier()->forward(ctx_, x, packing, false, logits);
  out_["logits"] = grid_.padded(logits, logits.dim(1));
  const TensorView dlogits = take(logits.shape());
  if (!loss(logits, true, learn, dlogits)) return;
  net_.classifier()->backward(ctx_, x, dlogits, packing, false, false, dx);
}

void Tracer::run(bool learn) {
  Arena::Scope activations(ctx_.activations());
  const Tap tap = [&](const std::string& name, ConstTensorView view) { tell(name, view); };
  const EncodeOptions encode{.save = learn, .tap = &tap};
  const TensorView x = take({batch_.tokens(), net_.dim()}), dx = take(x.shape());
  net_.encode(ctx_, batch_, encode, x);
  if (net_.words() != nullptr)
    words(x, learn, dx);
  else if (net_.pooler() != nullptr)
    cell_classes(x, learn, dx);
  else if (net_.classifier() != nullptr)
    token_classes(x, learn, dx);
  else
    require<DataError>(!learn, "this checkpoint has no head, so there is no loss of it");
  if (learn) net_.encode_backward(ctx_, batch_, encode, dx);
}

}  // namespace

TraceArrays trace_geneformer(Context& ctx, const std::string& folder, const TraceArrays& inputs,
                             const TraceOptions& options) {
  if (options.gradient && !options.gradient->empty())
    throw ConfigError(
        cat("--grad of a Geneformer checkpoint takes no name, got \"", *options.gradient, "\""),
        "E-TRACE-GRADIENT");
  const GeneformerModel model = load_geneformer(folder);
  model.network->set_precision(options.product);
  model.network->move_to(ctx.device());
  const std::vector<Parameter*> trained = model.network->parameters().all();
  if (options.gradient) make_trainable(trained);
  TraceArrays out;
  Tracer(ctx, *model.network, inputs, out).run(options.gradient.has_value());
  if (options.gradient) add_gradients({}, trained, out);
  return out;
}

}  // namespace scgraft
