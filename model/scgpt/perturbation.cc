// SPDX-License-Identifier: Apache-2.0
#include "model/scgpt/perturbation.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "runtime/error.h"

namespace scgraft {
namespace {

constexpr int64_t kTokensAtOnce = 8192;

void check(const ScgptNetwork& network, const PerturbedCells& cells) {
  const auto genes = static_cast<int64_t>(cells.genes.size());
  require<DataError>(cells.values.rank() == 2 && cells.values.dim(1) == genes &&
                         cells.values.dtype() == DType::f32,
                     "perturbation: expression must be f32 [cells, ", genes, "], got ",
                     cells.values.dtype(), " ", cells.values.shape());
  require<DataError>(
      cells.flags.shape() == cells.values.shape() && cells.flags.dtype() == DType::i32,
      "perturbation: flags must be i32 ", cells.values.shape(), ", got ", cells.flags.dtype(), " ",
      cells.flags.shape());
  for (const int32_t gene : cells.genes)
    require<DataError>(gene >= 0 && gene < network.config().vocab, "perturbation: a gene is token ",
                       gene, ", this model has ", network.config().vocab);
  const float* values = cells.values.as<float>();
  require<DataError>(
      std::all_of(values, values + cells.values.numel(), [](float v) { return std::isfinite(v); }),
      "perturbation: expression holds a value that is not finite");
}

std::vector<int64_t> read_columns(const PerturbedCells& cells, PredictedGenes which) {
  std::vector<int64_t> columns;
  const int64_t count = cells.values.dim(0), genes = cells.values.dim(1);
  const float* values = cells.values.as<float>();
  for (int64_t g = 0; g < genes; ++g) {
    bool read = which == PredictedGenes::all;
    for (int64_t c = 0; c < count && !read; ++c) read = values[c * genes + g] != 0;
    if (read) columns.push_back(g);
  }
  return columns;
}

}  // namespace

Tensor predict_perturbation(Context& ctx, ScgptNetwork& network, const PerturbedCells& cells,
                            PredictedGenes which) {
  AffineDecoder* decoder = network.affine_decoder();
  if (decoder == nullptr)
    throw ModelError("perturbation: this network does not predict perturbations", "E-MODEL-STYLE");
  check(network, cells);
  const int64_t count = cells.values.dim(0), genes = cells.values.dim(1);
  Tensor out(cells.values.shape(), DType::f32);
  const std::vector<int64_t> columns = read_columns(cells, which);
  const auto width = static_cast<int64_t>(columns.size());
  if (width == 0) return out;
  std::vector<int32_t> tokens;
  tokens.reserve(columns.size());
  for (const int64_t g : columns) tokens.push_back(cells.genes[static_cast<size_t>(g)]);

  TokenBatch batch;
  const int64_t at_once = std::max<int64_t>(1, kTokensAtOnce / width);
  for (int64_t begin = 0; begin < count; begin += at_once) {
    const int64_t end = std::min(count, begin + at_once);
    std::vector<float> values;
    std::vector<int32_t> flags;
    for (int64_t c = begin; c < end; ++c)
      for (const int64_t g : columns) {
        values.push_back(cells.values.as<float>()[c * genes + g]);
        flags.push_back(cells.flags.as<int32_t>()[c * genes + g]);
      }
    std::vector<CellView> views;
    for (int64_t c = begin; c < end; ++c)
      views.push_back({.cell = c,
                       .genes = tokens,
                       .values = std::span(values).subspan(static_cast<size_t>((c - begin) * width),
                                                           tokens.size())});
    batch.assign(ctx, views);
    Arena::Scope scope(ctx.activations());
    const TensorView x = scope.take({batch.tokens(), network.dim()}, DType::f32);
    const TensorView y = scope.take({batch.tokens(), 1}, DType::f32);
    network.encode(ctx, batch, {.flags = flags}, x);
    AffineDecoder::Saved saved;
    decoder->forward(ctx, x, batch.values(), batch.packing(), y, saved);
    Tensor predicted({end - begin, width}, DType::f32);
    copy(ctx, y, predicted.view().reshape(y.shape()));
    ctx.synchronize();
    for (int64_t c = begin; c < end; ++c)
      for (int64_t i = 0; i < width; ++i)
        out.as<float>()[c * genes + columns[static_cast<size_t>(i)]] =
            predicted.as<float>()[(c - begin) * width + i];
  }
  return out;
}

}  // namespace scgraft
