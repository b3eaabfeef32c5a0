// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <vector>

#include "kernels/masked_mse.h"
#include "model/scfoundation/cell_pooler.h"
#include "model/scfoundation/load.h"
#include "training/trace_kinds.h"

namespace scgraft {
namespace {

constexpr const char* kLearnFrom =
    "a gradient needs target_values of all entries, or cells with labels and a checkpoint with a "
    "classifier of them";
constexpr const char* kNeeded =
    "encoder_data, encoder_position_gene_ids, encoder_data_padding, decoder_data and "
    "decoder_position_gene_ids, or pretrain_gene_x";

// Cells on their way into a batch, with the numbers that it looks at.
struct Cells {
  std::vector<std::vector<int32_t>> entries;
  std::vector<std::vector<float>> values;

  void send(Context& ctx, TokenBatch& batch) const {
    std::vector<CellView> views;
    for (size_t b = 0; b < entries.size(); ++b)
      views.push_back({.cell = static_cast<int64_t>(b), .genes = entries[b], .values = values[b]});
    batch.assign(ctx, views);
  }
};

// One folder, one batch.
class Tracer {
 public:
  Tracer(Context& ctx, ScfoundationNetwork& net, const TraceArrays& inputs, TraceArrays& out)
      : ctx_(ctx), net_(net), inputs_(inputs), out_(out) {}

  // Expressed entries through the encoder, all of them through the decoder. With `learn` and
  // targets the gradient of their loss too; whether it was there.
  bool predict(bool learn);
  // Cells through the encoder without padding, their embeddings, and their classes where the
  // checkpoint has a classifier. The same of labels.
  bool embed(bool learn);

 private:
  // Of predictions [entries of all cells, 1], and with `learn` its gradient into dprediction; false
  // without targets.
  bool squared_error(const TokenGrid& whole, const TokenBatch& entries, ConstTensorView prediction,
                     bool learn, TensorView dprediction);
  TensorView take(Shape shape) { return ctx_.activations().take(shape, DType::f32); }
  const Tensor& input(const char* name) const { return required_input(inputs_, name, kNeeded); }

  Context& ctx_;
  ScfoundationNetwork& net_;
  const TraceArrays& inputs_;
  TraceArrays& out_;
};

bool Tracer::squared_error(const TokenGrid& whole, const TokenBatch& entries,
                           ConstTensorView prediction, bool learn, TensorView dprediction) {
  const Tensor* targets = optional_input(inputs_, "target_values");
  if (targets == nullptr) return false;
  whole.require_grid(*targets, "target_values");
  const Tensor& data = input("decoder_data");
  const int64_t n = whole.batch * whole.seq;
  Tensor wanted({n}, DType::f32), counts({n}, DType::u8);
  int64_t hidden = 0;
  for (int64_t i = 0; i < n; ++i) {
    wanted.as<float>()[i] = static_cast<float>(element(*targets, i));
    counts.as<uint8_t>()[i] = element(data, i) == net_.config().mask_value ? 1 : 0;
    hidden += counts.as<uint8_t>()[i];
  }
  if (hidden == 0) std::fill_n(counts.as<uint8_t>(), n, uint8_t{1});
  const double scale = 1.0 / static_cast<double>(hidden == 0 ? n : hidden);
  const Tensor targets_there = wanted.to(ctx_.device()), counts_there = counts.to(ctx_.device());
  const TensorView loss = take({whole.batch});
  masked_mse(ctx_, prediction.reshape({n}), targets_there.view(), counts_there.view(),
             entries.packing(), scale, loss, learn ? dprediction.reshape({n}) : TensorView());
  out_["loss_mse"] = scalar(sum_of(loss) * scale);
  return true;
}

bool Tracer::predict(bool learn) {
  Arena::Scope activations(ctx_.activations());
  const Tensor& padding = input("encoder_data_padding");
  TokenGrid expressed(padding, false);
  const Tensor& entries = input("decoder_position_gene_ids");
  require<DataError>(entries.rank() == 2 && entries.dim(0) == expressed.batch,
                     "decoder_position_gene_ids must be [", expressed.batch, ", entries], got ",
                     entries.shape());
  TokenGrid whole(entries, true);
  for (TokenGrid* grid : {&expressed, &whole}) grid->keep_all();
  const auto cells_of = [&](const TokenGrid& grid, const char* ids, const char* data) {
    grid.require_grid(input(ids), ids);
    grid.require_grid(input(data), data);
    return Cells{grid.tokens_of<int32_t>(input(ids)), grid.tokens_of<float>(input(data))};
  };
  Cells some = cells_of(expressed, "encoder_position_gene_ids", "encoder_data");
  const Cells all = cells_of(whole, "decoder_position_gene_ids", "decoder_data");
  std::vector<uint8_t> visible;
  for (int64_t i = 0; i < padding.numel(); ++i) {
    visible.push_back(element(padding, i) == 0 ? 1 : 0);
    if (visible.back() == 0)
      some.entries[static_cast<size_t>(i / expressed.seq)][static_cast<size_t>(i % expressed.seq)] =
          static_cast<int32_t>(net_.config().positions);
  }
  TokenBatch batch, entries_batch;
  some.send(ctx_, batch);
  all.send(ctx_, entries_batch);

  const Tap encoder_tap = [&](const std::string& name, ConstTensorView view) {
    out_["enc_" + name] = expressed.padded(view, view.dim(1));
  };
  const Tap decoder_tap = [&](const std::string& name, ConstTensorView view) {
    out_[name] = whole.padded(view, view.dim(1));
  };
  const TensorView x = take({batch.tokens(), net_.dim()});
  const TensorView prediction = take({entries_batch.tokens(), 1});
  const EncodeOptions encode{.save = learn, .tap = &encoder_tap, .visible = visible};
  const EncodeOptions decode{.save = learn, .tap = &decoder_tap};
  net_.encode(ctx_, batch, encode, x);
  out_["encoder_out"] = expressed.padded(x, x.dim(1));
  net_.decode(ctx_, batch, x, entries_batch, decode, prediction);
  out_["prediction"] = whole.padded(prediction, 0);
  const TensorView dprediction = take(prediction.shape());
  if (!squared_error(whole, entries_batch, prediction, learn, dprediction)) return false;
  if (!learn) return true;
  const TensorView dx = take(x.shape());
  net_.decode_backward(ctx_, batch, entries_batch, decode, dprediction, dx);
  net_.encode_backward(ctx_, batch, encode, dx);
  return true;
}

bool Tracer::embed(bool learn) {
  Arena::Scope activations(ctx_.activations());
  const Tensor& values = input("pretrain_gene_x");
  require<DataError>(values.rank() == 2 && values.dim(1) == net_.config().positions,
                     "pretrain_gene_x must be [batch, ", net_.config().positions, "], got ",
                     values.shape());
  Cells cells;
  for (int64_t b = 0; b < values.dim(0); ++b) {
    auto& entries = cells.entries.emplace_back();
    auto& numbers = cells.values.emplace_back();
    for (int64_t i = 0; i < values.dim(1); ++i) {
      const auto value = static_cast<float>(element(values, b * values.dim(1) + i));
      if (!(value > 0)) continue;
      entries.push_back(static_cast<int32_t>(i));
      numbers.push_back(value);
    }
  }
  TokenBatch batch;
  cells.send(ctx_, batch);
  const Packing packing = batch.packing();
  const auto tell = [&](const char* name, ConstTensorView rows) {
    for (int64_t b = 0; b < packing.cells(); ++b) {
      const ConstTensorView cell = rows.rows(packing.begin(b), packing.end(b));
      out_[cat("cell", b, "_", name)] =
          host_copy(cell.reshape({1, packing.length(b), rows.dim(1)}));
    }
  };
  const Tap tap = [&](const std::string& name, ConstTensorView view) {
    if (name == "token_emb") tell("token_emb", view);
  };
  const TensorView x = take({batch.tokens(), net_.dim()});
  const EncodeOptions encode{.save = learn, .tap = &tap};
  net_.encode(ctx_, batch, encode, x);
  tell("encoder_out", x);
  CellPooler largest(CellPooling::max), all(CellPooling::all);
  const TensorView most = take({batch.cells(), largest.width(net_.dim())});
  largest.forward(ctx_, x, packing, most);
  out_["cell_embedding_max"] = host_copy(most);
  const TensorView parts = take({batch.cells(), all.width(net_.dim())});
  all.forward(ctx_, x, packing, parts);
  out_["cell_embedding_all"] = host_copy(parts);

  PartsClassifier* head = net_.classifier();
  if (head == nullptr) return false;
  PartsClassifier::Saved saved;
  const TensorView logits = take({batch.cells(), head->classes()}), dlogits = take(logits.shape());
  head->forward(ctx_, parts, batch.cell_rows(), logits, &saved);
  out_["logits"] = host_copy(logits);
  const Tensor* given = optional_input(inputs_, "labels");
  if (given == nullptr) return false;
  require<DataError>(given->shape() == Shape{batch.cells()}, "labels must be [", batch.cells(),
                     "], got ", given->shape());
  std::vector<int32_t> labels;
  for (int64_t b = 0; b < batch.cells(); ++b)
    labels.push_back(static_cast<int32_t>(element(*given, b)));
  out_["loss_cls"] = scalar(mean_cross_entropy(ctx_, logits, labels, dlogits));
  if (!learn) return true;
  const TensorView dparts = take(parts.shape()), dx = take(x.shape());
  head->backward(ctx_, saved, dlogits, batch.cell_rows(), dparts);
  all.backward(ctx_, dparts, packing, dx);
  net_.encode_backward(ctx_, batch, encode, dx);
  return true;
}

}  // namespace

TraceArrays trace_scfoundation(Context& ctx, const std::string& folder, const TraceArrays& inputs,
                               const TraceOptions& options) {
  if (options.gradient && !options.gradient->empty())
    throw ConfigError(
        cat("--grad of a scFoundation checkpoint takes no name, got \"", *options.gradient, "\""),
        "E-TRACE-GRADIENT");
  ScfoundationLoadOptions load;
  if (!options.branch.empty()) load.branch = options.branch;
  const ScfoundationModel model = load_scfoundation(folder, load);
  if (options.upstream) model.network->set_stabiliser(FavorStabiliser::batch);
  model.network->set_precision(options.product);
  model.network->move_to(ctx.device());
  std::vector<Parameter*> trained = model.network->parameters().all();
  std::erase_if(trained, [](const Parameter* p) { return p->name.ends_with("projection_matrix"); });
  const bool learn = options.gradient.has_value();
  if (learn) make_trainable(trained);
  TraceArrays out;
  Tracer tracer(ctx, *model.network, inputs, out);
  const bool cells = optional_input(inputs, "pretrain_gene_x") != nullptr;
  bool loss = cells && tracer.embed(learn);
  if (!cells || optional_input(inputs, "encoder_data") != nullptr)
    loss = tracer.predict(learn) || loss;
  require<DataError>(loss || !learn, kLearnFrom);
  if (learn) add_gradients({}, trained, out);
  return out;
}

}  // namespace scgraft
