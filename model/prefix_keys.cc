// SPDX-License-Identifier: Apache-2.0
#include "model/prefix_keys.h"

#include "kernels/add.h"
#include "kernels/cast.h"
#include "kernels/require_tensor.h"
#include "model/tables.h"

namespace scgraft {

Packing PrefixKeys::packing(Context& ctx, int64_t count) {
  if (offsets_.size() != 2 || offsets_[1] != count || device_ != ctx.device()) {
    device_ = ctx.device();
    offsets_ = {0, static_cast<int32_t>(count)};
    packing_.assign(ctx, Packing::over(offsets_));
  }
  return packing_.packing();
}

void PrefixKeys::forward(Context& ctx, EncoderLayer& layer, bool training, DType type) {
  const ConstTensorView rows = in_type(ctx, layer.prefix->rows(), type);
  const int64_t count = rows.dim(0);
  const Packing cell = packing(ctx, count);
  Arena& keep = ctx.activations();
  n_ = rows;
  if (layer.pre_norm) {
    const TensorView normed = keep.take(rows.shape(), type);
    layer.norm1.forward(ctx, rows, {}, {}, nullptr, normed, &norm_);
    n_ = normed;
  }
  const TensorView k = keep.take({count, layer.k.out()}, type);
  const TensorView v = keep.take({count, layer.v.out()}, type);
  layer.k.forward(ctx, n_, cell, training, k);
  layer.v.forward(ctx, n_, cell, training, v);
  front_ = {.k = k, .v = v};
  wanted_ = layer.prefix->trainable() || layer.k.trainable() || layer.v.trainable() ||
            (layer.pre_norm && layer.norm1.trainable());
}

void PrefixKeys::begin_backward(Context& ctx) {
  gradient_ = {};
  if (!wanted_) return;
  const DType sums = sum_type(front_.k.dtype());
  gradient_ = {.k = ctx.activations().take(front_.k.shape(), sums),
               .v = ctx.activations().take(front_.v.shape(), sums)};
  set_zero(ctx, gradient_.k);
  set_zero(ctx, gradient_.v);
}

void PrefixKeys::backward(Context& ctx, EncoderLayer& layer, bool training) {
  if (!wanted_) return;
  Arena::Scope scratch(ctx.scratch());
  const DType type = front_.k.dtype();
  const auto in_type_of_rows = [&](TensorView sums) {
    if (sums.dtype() == type) return sums;
    const TensorView other = scratch.take(sums.shape(), type);
    cast(ctx, sums, other);
    return other;
  };
  const bool to_rows = layer.prefix->trainable();
  const Packing cell = packing(ctx, n_.dim(0));
  TensorView dn;
  if (to_rows || (layer.pre_norm && layer.norm1.trainable())) dn = scratch.take(n_.shape(), type);
  layer.k.backward(ctx, n_, in_type_of_rows(gradient_.k), cell, training, false, dn);
  layer.v.backward(ctx, n_, in_type_of_rows(gradient_.v), cell, training, true, dn);
  if (dn.empty()) return;
  if (layer.pre_norm) layer.norm1.backward(ctx, norm_, dn, {}, nullptr, dn, {});
  if (!to_rows) return;
  const TensorView to = layer.prefix->gradient();
  TensorView drows = dn;
  if (dn.dtype() != to.dtype()) {
    drows = scratch.take(dn.shape(), to.dtype());
    cast(ctx, dn, drows);
  }
  add(ctx, to, drows, to);
}

}  // namespace scgraft
