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

void MaskedExpression::run(Context& ctx, const TokenBatch& batch, bool training, double scale,
                           ObjectiveSums& sums) {
  Arena::Scope activations(ctx.activations());
  const int64_t tokens = batch.tokens();
  const int64_t cells = batch.cells();
  const int64_t dim = network_.dim();
  const bool learn = scale > 0;
  const DType type = DType::f32;
  const Packing packing = batch.packing();
  const EncodeOptions encode{.training = training, .save = learn, .rows = LayerRows::all};
  const TensorView x = activations.take({tokens, dim}, type);
  network_.encode(ctx, batch, encode, x);

  // The expression decoder runs on the masked rows only.
  const uint8_t* masked = batch.masked().as<uint8_t>();
  const int64_t n = std::accumulate(masked, masked + tokens, int64_t{0});
  const TensorView row = activations.take({n}, DType::i32);
  const TensorView row_target = activations.take({n}, type);
  const TensorView row_mask = activations.take({n}, DType::u8);
  const TensorView use_offsets = activations.take({tokens + 1}, DType::i32);
  const TensorView use_rows = activations.take({n}, DType::i32);
  const TensorView row_offsets = activations.take({cells + 1}, DType::i32);
  const float* target = batch.targets().as<float>();
  int32_t next = 0;
  row_offsets.as<int32_t>()[0] = 0;
  for (int64_t b = 0; b < cells; ++b) {
    for (int64_t t = packing.begin(b); t < packing.end(b); ++t) {
      use_offsets.as<int32_t>()[t] = next;
      if (masked[t] == 0) continue;
      row.as<int32_t>()[next] = static_cast<int32_t>(t);
      use_rows.as<int32_t>()[next] = next;
      row_target.as<float>()[next] = target[t];
      row_mask.as<uint8_t>()[next] = 1;
      ++next;
    }
    row_offsets.as<int32_t>()[b + 1] = next;
  }
  use_offsets.as<int32_t>()[tokens] = next;
  const Packing rows = Packing::over({row_offsets.as<int32_t>(), static_cast<size_t>(cells) + 1});

  const TensorView hidden = activations.take({n, dim}, type);
  embedding_sum(ctx, x, row, {}, {}, {}, rows, hidden);
  const TensorView decoded = activations.take({n, 1}, type);
  ExpressionDecoder::Saved decoder_saved;
  network_.decoder()->forward(ctx, hidden, rows, decoded, learn ? &decoder_saved : nullptr);
  const TensorView loss = activations.take({cells}, type),
                   mvc_loss = activations.take({cells}, type);
  const TensorView decoded_flat = decoded.reshape({n});
  masked_mse(ctx, decoded_flat, row_target, row_mask, rows, scale, loss,
             learn ? decoded_flat : TensorView());

  const TensorView cell = activations.take({cells, dim}, type);
  pool(ctx, Pooling::cls, x, {}, packing, cell);
  const TensorView predicted = activations.take({tokens}, type);
  MvcDecoder::Saved mvc_saved;
  network_.mvc()->forward(ctx, network_.gene_rows(), cell, batch, predicted,
                          learn ? &mvc_saved : nullptr);
  masked_mse(ctx, predicted, batch.targets(), batch.masked(), packing, scale, mvc_loss,
             learn ? predicted : TensorView());
  for (int64_t b = 0; b < cells; ++b)
    sums.loss +=
        static_cast<double>(loss.as<float>()[b]) + static_cast<double>(mvc_loss.as<float>()[b]);
  sums.weight += static_cast<double>(n);
  if (!learn) return;

  const TensorView dhidden = activations.take({n, dim}, type);
  network_.decoder()->backward(ctx, decoder_saved, decoded, rows, dhidden);
  const TensorView dx = activations.take({tokens, dim}, type);
  embedding_sum_backward(ctx, dhidden, {use_offsets, use_rows}, {}, rows, dx);

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
