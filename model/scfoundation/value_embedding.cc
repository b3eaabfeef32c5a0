// SPDX-License-Identifier: Apache-2.0
#include "model/scfoundation/value_embedding.h"

#include "kernels/activation.h"
#include "kernels/add.h"
#include "kernels/linear.h"
#include "kernels/softmax.h"
#include "model/tables.h"

namespace scgraft {

ValueEmbedding::ValueEmbedding(const ParameterMaker& make, const Sizes& sizes) : sizes_(sizes) {
  const int64_t bins = sizes.bins;
  mlp1_ = make.linear("token_emb.mlp", 1, bins);
  mlp2_ = make.linear("token_emb.mlp2", bins, bins);
  table_ = &make.parameter("token_emb.emb.weight", {bins, sizes.dim});
  mask_ = &make.parameter("token_emb.emb_mask.weight", {1, sizes.dim});
  pad_ = &make.parameter("token_emb.emb_pad.weight", {1, sizes.dim});
}

bool ValueEmbedding::trainable() const {
  return mlp1_.trainable() || mlp2_.trainable() || table_->trainable() || mask_->trainable() ||
         pad_->trainable();
}

void ValueEmbedding::parameters_updated() {
  if (table_->trainable()) table_changed();
}

PackedWeight& ValueEmbedding::packed(Context& ctx, PackedFor use) {
  PackedWeight& weight = use == PackedFor::forward ? forward_ : backward_;
  bool& stale = use == PackedFor::forward ? forward_stale_ : backward_stale_;
  if (stale) {
    const ConstTensorView table = std::as_const(table_->value).view();
    weight.pack(ctx, table, use, table.dtype());
    stale = false;
  }
  return weight;
}

TensorView ValueEmbedding::forward(Context& ctx, const TokenBatch& batch, Saved& saved) {
  const std::span<const float> values = batch.host_unique_values();
  const auto n = static_cast<int64_t>(values.size());
  const Packing rows = batch.value_rows();
  const DType type = table_->value.dtype();
  Arena& keep = ctx.activations();
  saved.v = in_type(ctx, batch.unique_values().reshape({n, 1}), type);
  const TensorView a = keep.take({n, sizes_.bins}, type), p = keep.take(a.shape(), type);
  mlp1_.forward(ctx, saved.v, rows, false, a);
  activation(ctx, Activation::steep_leaky_relu, a, a);
  mlp2_.forward(ctx, a, rows, false, p);
  add(ctx, p, a, p, sizes_.alpha);
  softmax(ctx, p, p);
  saved.a = a;
  saved.p = p;

  const TensorView all = keep.take({n + 2, sizes_.dim}, type);
  linear_backward_input(ctx, p, packed(ctx, PackedFor::backward_input), {}, &rows, false,
                        all.rows(0, n));
  copy(ctx, std::as_const(mask_->value).view(), all.rows(n, n + 1));
  copy(ctx, std::as_const(pad_->value).view(), all.rows(n + 1, n + 2));
  saved.rows.host.clear();
  for (int64_t i = 0; i < n; ++i) {
    const float value = values[static_cast<size_t>(i)];
    const int64_t row = value == sizes_.mask ? n : value == sizes_.pad ? n + 1 : i;
    saved.rows.host.push_back(static_cast<int32_t>(row));
  }
  saved.memory.send(ctx, saved.rows);
  const TensorView out = keep.take({n, sizes_.dim}, type);
  embedding_sum(ctx, all, saved.rows.view(), {}, {}, {}, rows, out);
  return out;
}

void ValueEmbedding::backward(Context& ctx, const TokenBatch& batch, const Saved& saved,
                              ConstTensorView drows) {
  const int64_t n = drows.dim(0);
  const Packing rows = batch.value_rows();
  Arena::Scope scratch(ctx.scratch());
  // A row of [e ; mask ; pad] is used once or not at all: the values are distinct.
  const TensorView all = scratch.take({n + 2, sizes_.dim}, drows.dtype());
  set_zero(ctx, all);
  add_rows(ctx, drows, saved.rows.view(), all);
  if (mask_->trainable()) add(ctx, mask_->grad.view(), all.rows(n, n + 1), mask_->grad.view());
  if (pad_->trainable()) add(ctx, pad_->grad.view(), all.rows(n + 1, n + 2), pad_->grad.view());
  const TensorView de = all.rows(0, n);
  if (table_->trainable()) linear_backward_weight(ctx, de, saved.p, rows, table_->grad.view(), {});
  if (!mlp1_.trainable() && !mlp2_.trainable()) return;

  const TensorView dz = scratch.take(saved.p.shape(), drows.dtype());
  linear(ctx, de, packed(ctx, PackedFor::forward), {}, {}, &rows, dz);
  softmax_backward(ctx, saved.p, dz, dz);
  TensorView da;
  if (mlp1_.trainable()) da = scratch.take(saved.p.shape(), drows.dtype());
  mlp2_.backward(ctx, saved.a, dz, rows, false, false, da);
  if (da.empty()) return;
  add(ctx, da, dz, da, sizes_.alpha);
  activation_backward(ctx, Activation::steep_leaky_relu, saved.a, da, da);
  mlp1_.backward(ctx, saved.v, da, rows, false, false, {});
}

}  // namespace scgraft
