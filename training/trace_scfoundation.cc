// SPDX-License-Identifier: Apache-2.0
#include <numeric>
#include <vector>

#include "model/scfoundation/cell_pooler.h"
#include "model/scfoundation/load.h"
#include "training/trace_kinds.h"

namespace scgraft {
namespace {

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

  // Expressed entries through the encoder, all of them through the decoder.
  void predict();
  // Cells through the encoder without padding, and their embeddings.
  void embed();

 private:
  TensorView take(Shape shape) { return ctx_.activations().take(shape, DType::f32); }
  const Tensor& input(const char* name) const { return required_input(inputs_, name, kNeeded); }

  Context& ctx_;
  ScfoundationNetwork& net_;
  const TraceArrays& inputs_;
  TraceArrays& out_;
};

void Tracer::predict() {
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
  net_.encode(ctx_, batch, {.tap = &encoder_tap, .visible = visible}, x);
  out_["encoder_out"] = expressed.padded(x, x.dim(1));
  net_.decode(ctx_, batch, x, entries_batch, {.tap = &decoder_tap}, prediction);
  out_["prediction"] = whole.padded(prediction, 0);
}

void Tracer::embed() {
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
  net_.encode(ctx_, batch, {.tap = &tap}, x);
  tell("encoder_out", x);
  for (const auto& [name, pooling] : {std::pair{"cell_embedding_all", CellPooling::all},
                                      {"cell_embedding_max", CellPooling::max}}) {
    CellPooler embedding(pooling);
    const TensorView y = take({batch.cells(), embedding.width(net_.dim())});
    embedding.forward(ctx_, x, packing, y);
    out_[name] = host_copy(y);
  }
}

}  // namespace

TraceArrays trace_scfoundation(Context& ctx, const std::string& folder, const TraceArrays& inputs,
                               const TraceOptions& options) {
  if (options.gradient)
    throw ConfigError("--grad of a scFoundation checkpoint: there is no loss of its trace",
                      "E-TRACE-GRADIENT");
  ScfoundationLoadOptions load;
  if (!options.branch.empty()) load.branch = options.branch;
  const ScfoundationModel model = load_scfoundation(folder, load);
  if (options.upstream) model.network->set_stabiliser(FavorStabiliser::batch);
  model.network->set_precision(options.product);
  model.network->move_to(ctx.device());
  TraceArrays out;
  Tracer tracer(ctx, *model.network, inputs, out);
  const bool cells = optional_input(inputs, "pretrain_gene_x") != nullptr;
  if (cells) tracer.embed();
  if (!cells || optional_input(inputs, "encoder_data") != nullptr) tracer.predict();
  return out;
}

}  // namespace scgraft
