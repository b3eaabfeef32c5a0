// SPDX-License-Identifier: Apache-2.0
#include "training/masked_expression.h"

#include <numeric>

#include "kernels/add.h"
#include "kernels/embedding_sum.h"
#include "kernels/masked_mse.h"
#include "kernels/pool.h"

namespace scgraft {

MaskedExpression::MaskedExpression(ScgptNetwork& network) : network_(network) {
  require(network_.decoder() != nullptr && network_.mvc() != nullptr,
          "masked expression needs the expression decoder and the MVC head");
}

double MaskedExpression::weight(std::span<const CellView> cells) const {
  int64_t masked = 0;
  for (const CellView& cell : cells)
    masked = std::accumulate(cell.masked.begin(), cell.masked.end(), masked);
  return static_cast<double>(masked);
}

void MaskedExpression::HiddenRows::clear() {
  for (auto* array : {&row, &row_cells, &row_offsets, &use_offsets, &use_rows}) array->host.clear();
  target.host.clear();
  mask.host.clear();
}

int64_t MaskedExpression::hide(Context& ctx, const TokenBatch& batch) {
  const Packing packing = batch.packing();
  const std::span<const uint8_t> masked = batch.host_masked();
  const std::span<const float> target = batch.host_targets();
  hidden_.clear();
  int32_t next = 0;
  hidden_.row_offsets.host.push_back(0);
  for (int64_t b = 0; b < batch.cells(); ++b) {
    for (int64_t t = packing.begin(b); t < packing.end(b); ++t) {
      const auto token = static_cast<size_t>(t);
      hidden_.use_offsets.host.push_back(next);
      if (masked[token] == 0) continue;
      hidden_.row.host.push_back(static_cast<int32_t>(t));
      hidden_.row_cells.host.push_back(static_cast<int32_t>(b));
      hidden_.use_rows.host.push_back(next);
      hidden_.target.host.push_back(target[token]);
      hidden_.mask.host.push_back(1);
      ++next;
    }
    hidden_.row_offsets.host.push_back(next);
  }
  hidden_.use_offsets.host.push_back(next);
  memory_.send(ctx, hidden_.row, hidden_.row_cells, hidden_.use_offsets, hidden_.use_rows,
               hidden_.row_offsets, hidden_.target, hidden_.mask);
  return next;
}

void MaskedExpression::run(Context& ctx, const TokenBatch& batch, bool training,
                           const GradientScale& scale, ObjectiveSums& sums) {
  Arena::Scope activations(ctx.activations());
  const int64_t tokens = batch.tokens();
  const int64_t cells = batch.cells();
  const int64_t dim = network_.dim();
  const bool learn = scale.value > 0;
  const DType type = DType::f32;
  const Packing packing = batch.packing();
  const EncodeOptions encode{.training = training, .save = learn, .rows = LayerRows::all};
  const TensorView x = activations.take({tokens, dim}, type);
  network_.encode(ctx, batch, encode, x);

  // The expression decoder runs on the masked rows only.
  const int64_t n = hide(ctx, batch);
  Packing rows = Packing::over(hidden_.row_offsets.host);
  if (!hidden_.row_offsets.device.empty()) {
    rows.cu_seqlens = hidden_.row_offsets.device;
    rows.row_cells = hidden_.row_cells.device;
  }

  const TensorView hidden = activations.take({n, dim}, type);
  embedding_sum(ctx, x, hidden_.row.view(), {}, {}, {}, rows, hidden);
  const TensorView decoded = activations.take({n, 1}, type);
  ExpressionDecoder::Saved decoder_saved;
  network_.decoder()->forward(ctx, hidden, rows, decoded, learn ? &decoder_saved : nullptr);
  const TensorView loss = activations.take({cells}, type),
                   mvc_loss = activations.take({cells}, type);
  const TensorView decoded_flat = decoded.reshape({n});
  masked_mse(ctx, decoded_flat, hidden_.target.view(), hidden_.mask.view(), rows, scale.value, loss,
             learn ? decoded_flat : TensorView(), scale.factor);

  const TensorView cell = activations.take({cells, dim}, type);
  pool(ctx, Pooling::cls, x, {}, packing, cell);
  const TensorView predicted = activations.take({tokens}, type);
  MvcDecoder::Saved mvc_saved;
  network_.mvc()->forward(ctx, network_.gene_rows(), cell, batch, predicted,
                          learn ? &mvc_saved : nullptr);
  masked_mse(ctx, predicted, batch.targets(), batch.masked(), packing, scale.value, mvc_loss,
             learn ? predicted : TensorView(), scale.factor);
  sums.add(ctx, loss, mvc_loss);
  sums.weight += static_cast<double>(n);
  if (!learn) return;

  const TensorView dhidden = activations.take({n, dim}, type);
  network_.decoder()->backward(ctx, decoder_saved, decoded, rows, dhidden);
  const TensorView dx = activations.take({tokens, dim}, type);
  embedding_sum_backward(ctx, dhidden, {hidden_.use_offsets.view(), hidden_.use_rows.view()}, {},
                         rows, dx);

  const TensorView dcell = activations.take({cells, dim}, type);
  TensorView dgene;
  if (network_.gene_encoder_trainable())
    dgene = activations.take(network_.gene_rows().shape(), type);
  network_.mvc()->backward(ctx, mvc_saved, predicted, batch, dcell, dgene);
  if (!dgene.empty()) network_.add_gene_gradient(ctx, dgene);
  const TensorView dfirst = activations.take({tokens, dim}, type);
  pool_backward(ctx, Pooling::cls, dcell, {}, packing, dfirst);
  add(ctx, dx, dfirst, dx);
  network_.encode_backward(ctx, batch, encode, dx);
}

}  // namespace scgraft
