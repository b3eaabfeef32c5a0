// SPDX-License-Identifier: Apache-2.0
#include "model/performer_layer.h"

#include "kernels/activation.h"
#include "kernels/add.h"

namespace scgraft {

bool PerformerLayer::trainable() const {
  return q.trainable() || k.trainable() || v.trainable() || out.trainable() || ffn_in.trainable() ||
         ffn_out.trainable() || norm1.trainable() || norm2.trainable();
}

std::vector<Linear*> PerformerLayer::linears() { return {&q, &k, &v, &out, &ffn_in, &ffn_out}; }

void PerformerLayer::forward(Context& ctx, ConstTensorView x, const Packing& packing, bool training,
                             TensorView y, Saved* saved, const Taps* taps) {
  const int64_t tokens = packing.tokens();
  const int64_t dim = x.dim(1);
  const int64_t inner = q.out();
  const DType type = x.dtype();
  const bool save = saved != nullptr;
  Arena& keep = save ? ctx.activations() : ctx.scratch();
  Arena::Scope scratch(ctx.scratch());
  const auto tell = [&](ConstTensorView view, TensorView Taps::*tap) {
    if (taps != nullptr && !(taps->*tap).empty()) copy(ctx, view, taps->*tap);
  };

  const TensorView n1 = keep.take({tokens, dim}, type);
  norm1.forward(ctx, x, {}, {}, nullptr, n1, save ? &saved->norm1 : nullptr);
  tell(n1, &Taps::n1);
  const Shape wide{tokens, inner};
  const TensorView queries = keep.take(wide, type), keys = keep.take(wide, type),
                   values = keep.take(wide, type), attended = keep.take(wide, type);
  q.forward(ctx, n1, packing, training, queries);
  k.forward(ctx, n1, packing, training, keys);
  v.forward(ctx, n1, packing, training, values);
  const ConstTensorView features = std::as_const(projection->value).view();
  const FavorContext context =
      FavorContext::take(keep, packing.cells(), heads, features.dim(0), features.dim(1), type);
  favor_attention(ctx, queries, keys, values, packing, heads, features, favor, attended, context);
  tell(queries, &Taps::q);
  tell(keys, &Taps::k);
  tell(values, &Taps::v);
  tell(attended, &Taps::favor);

  // A branch by itself is wanted by taps alone.
  const auto branch = [&](Linear& linear, ConstTensorView from, TensorView Taps::*tap) {
    if (taps == nullptr || (taps->*tap).empty()) return;
    linear.forward(ctx, from, packing, training, taps->*tap);
  };
  branch(out, attended, &Taps::attention_out);
  const TensorView mid = ctx.scratch().take({tokens, dim}, type);
  out.forward(ctx, attended, packing, training, mid, {.residual = x});
  tell(mid, &Taps::mid);

  const TensorView n2 = keep.take({tokens, dim}, type);
  norm2.forward(ctx, mid, {}, {}, nullptr, n2, save ? &saved->norm2 : nullptr);
  const TensorView hidden = ctx.scratch().take({tokens, ffn_in.out()}, type);
  TensorView pre;
  if (save) pre = keep.take({tokens, ffn_in.out()}, type);
  ffn_in.forward(ctx, n2, packing, training, hidden, {.gelu = true, .pre = pre});
  branch(ffn_out, hidden, &Taps::ffn_out);
  ffn_out.forward(ctx, hidden, packing, training, y, {.residual = mid});

  if (!save) return;
  saved->n1 = n1;
  saved->n2 = n2;
  saved->q = queries;
  saved->k = keys;
  saved->v = values;
  saved->favor = attended;
  saved->pre = pre;
  saved->context = context;
}

void PerformerLayer::backward(Context& ctx, const Saved& saved, const Packing& packing,
                              bool training, TensorView dy, bool want_dx) {
  const bool want_qkv =
      want_dx || norm1.trainable() || q.trainable() || k.trainable() || v.trainable();
  const bool want_mid = want_qkv || out.trainable();
  const bool want_n2 = want_mid || norm2.trainable();
  const bool want_hidden = want_n2 || ffn_in.trainable();
  const DType type = saved.n1.dtype();
  Arena::Scope scratch(ctx.scratch());
  const Shape narrow = saved.n1.shape();

  // The hidden rows are computed again from what was before gelu.
  TensorView hidden, dhidden;
  if (ffn_out.trainable()) {
    hidden = ctx.scratch().take(saved.pre.shape(), type);
    activation(ctx, Activation::gelu, saved.pre, hidden);
  }
  if (want_hidden) dhidden = ctx.scratch().take(saved.pre.shape(), type);
  ffn_out.backward(ctx, hidden, dy, packing, training, false, dhidden);
  if (!want_hidden) return;
  activation_backward(ctx, Activation::gelu, saved.pre, dhidden, dhidden);
  TensorView dn;
  if (want_n2) dn = ctx.scratch().take(narrow, type);
  ffn_in.backward(ctx, saved.n2, dhidden, packing, training, false, dn);
  if (!want_n2) return;
  norm2.backward(ctx, saved.norm2, dn, {}, &packing, dn, {});
  if (!want_mid) return;
  add(ctx, dy, dn, dy);

  TensorView dfavor;
  if (want_qkv) dfavor = ctx.scratch().take(saved.favor.shape(), type);
  out.backward(ctx, saved.favor, dy, packing, training, false, dfavor);
  if (!want_qkv) return;
  const bool want_n1 = want_dx || norm1.trainable();
  const auto wanted = [&](const Linear& linear) {
    return want_n1 || linear.trainable() ? ctx.scratch().take(saved.favor.shape(), type)
                                         : TensorView();
  };
  const TensorView dq = wanted(q), dk = wanted(k), dv = wanted(v);
  favor_attention_backward(ctx, saved.q, saved.k, saved.v, saved.favor, dfavor, packing, heads,
                           std::as_const(projection->value).view(), favor, saved.context, dq, dk,
                           dv);
  const TensorView dn1 = want_n1 ? dn : TensorView();
  if (!dq.empty()) q.backward(ctx, saved.n1, dq, packing, training, false, dn1);
  if (!dk.empty()) k.backward(ctx, saved.n1, dk, packing, training, true, dn1);
  if (!dv.empty()) v.backward(ctx, saved.n1, dv, packing, training, true, dn1);
  if (!want_n1) return;
  norm1.backward(ctx, saved.norm1, dn1, {}, &packing, dn1, {});
  if (want_dx) add(ctx, dy, dn1, dy);
}

}  // namespace scgraft
