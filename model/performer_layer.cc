// SPDX-License-Identifier: Apache-2.0
#include "model/performer_layer.h"

#include "kernels/activation.h"
#include "kernels/add.h"
#include "kernels/favor_attention_received.h"

namespace scgraft {

bool PerformerLayer::trainable() const {
  for (const HiddenSite* site : {after_attention, beside_ffn, in_branch, in_residual})
    if (is_trainable(site)) return true;
  if (keys_values != nullptr && keys_values->trainable()) return true;
  return q.trainable() || k.trainable() || v.trainable() || out.trainable() || ffn_in.trainable() ||
         ffn_out.trainable() || norm1.trainable() || norm2.trainable();
}

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
  const bool more = keys_values != nullptr;
  Arena& own = more ? ctx.scratch() : keep;  // what attention reads is kept
  const TensorView attended = keep.take(wide, type), queries = own.take(wide, type),
                   keys = own.take(wide, type), values = own.take(wide, type);
  q.forward(ctx, n1, packing, training, queries);
  k.forward(ctx, n1, packing, training, keys);
  v.forward(ctx, n1, packing, training, values);
  const ConstTensorView omega = features(training);
  const FavorContext context =
      FavorContext::take(keep, packing.cells(), heads, omega.dim(0), omega.dim(1), type);
  TensorView of_q = queries, of_k = keys, of_v = values, mixed = attended;
  if (more) {
    const AttentionPrefix rows = keys_values->rows();
    longer.assign(ctx, packing, rows.k.dim(0));
    const Shape all{longer.packing().tokens(), inner};
    of_q = keep.take(all, type), of_k = keep.take(all, type), of_v = keep.take(all, type);
    mixed = keep.take(all, type);
    const TensorView nothing = own.take({rows.k.dim(0), inner}, type);  // asks, and is not heard
    set_zero(ctx, nothing);
    longer.insert(ctx, queries, nothing, of_q);
    longer.insert(ctx, keys, rows.k, of_k);
    longer.insert(ctx, values, rows.v, of_v);
  }
  favor_attention(ctx, of_q, of_k, of_v, more ? longer.packing() : packing, heads, omega, favor,
                  mixed, context);
  if (more) longer.remove(ctx, mixed, attended);
  tell(queries, &Taps::q);
  tell(keys, &Taps::k);
  tell(values, &Taps::v);
  tell(attended, &Taps::favor);

  // A branch by itself is wanted by taps and by what is attached to it.
  const auto branch = [&](Linear& linear, ConstTensorView from, TensorView Taps::*tap) {
    if (taps == nullptr || (taps->*tap).empty()) return;
    linear.forward(ctx, from, packing, training, taps->*tap);
  };
  // What goes through a site, in memory of its own; `rows` themselves where there is none.
  const auto through = [&](HiddenSite* site, TensorView rows) {
    if (site == nullptr) return rows;
    const TensorView there = keep.take(rows.shape(), type);
    site->forward(ctx, rows, packing, save, there);
    return there;
  };
  const Shape shape{tokens, dim};
  // What a site reads stays until the backward pass.
  Arena& read =
      save && (after_attention != nullptr || beside_ffn != nullptr || in_residual != nullptr)
          ? ctx.activations()
          : ctx.scratch();
  const TensorView sum = read.take(shape, type);
  branch(out, attended, &Taps::attention_out);
  if (in_branch == nullptr) {
    out.forward(ctx, attended, packing, training, sum, {.residual = x});
  } else {
    const TensorView alone = keep.take(shape, type);
    out.forward(ctx, attended, packing, training, alone);
    add(ctx, x, through(in_branch, alone), sum);
  }
  const TensorView mid = through(after_attention, sum);
  tell(mid, &Taps::mid);

  const TensorView n2 = keep.take(shape, type);
  norm2.forward(ctx, mid, {}, {}, nullptr, n2, save ? &saved->norm2 : nullptr);
  const TensorView hidden = ctx.scratch().take({tokens, ffn_in.out()}, type);
  TensorView pre;
  if (save) pre = keep.take({tokens, ffn_in.out()}, type);
  ffn_in.forward(ctx, n2, packing, training, hidden, {.gelu = true, .pre = pre});
  branch(ffn_out, hidden, &Taps::ffn_out);
  ffn_out.forward(ctx, hidden, packing, training, y, {.residual = through(in_residual, mid)});
  if (beside_ffn != nullptr) add(ctx, y, through(beside_ffn, mid), y);

  if (!save) return;
  saved->n1 = n1;
  saved->n2 = n2;
  saved->q = of_q;
  saved->k = of_k;
  saved->v = of_v;
  saved->mixed = mixed;
  saved->favor = attended;
  saved->pre = pre;
  saved->context = context;
}

void PerformerLayer::received(Context& ctx, ConstTensorView x, const Packing& packing,
                              TensorView received) {
  Arena::Scope scratch(ctx.scratch());
  const Shape wide{packing.tokens(), q.out()};
  const TensorView n1 = scratch.take(x.shape(), x.dtype());
  norm1.forward(ctx, x, {}, {}, nullptr, n1, nullptr);
  const TensorView queries = scratch.take(wide, x.dtype()), keys = scratch.take(wide, x.dtype()),
                   attended = scratch.take(wide, x.dtype());
  q.forward(ctx, n1, packing, false, queries);
  k.forward(ctx, n1, packing, false, keys);
  const ConstTensorView omega = features(false);
  const FavorContext context = FavorContext::take(ctx.scratch(), packing.cells(), heads,
                                                  omega.dim(0), omega.dim(1), x.dtype());
  // The keys stand for the values, which play no part in what is received.
  favor_attention(ctx, queries, keys, keys, packing, heads, omega, favor, attended, context);
  favor_attention_received(ctx, queries, keys, packing, heads, omega, favor, context, received);
}

void PerformerLayer::backward(Context& ctx, const Saved& saved, const Packing& packing,
                              bool training, TensorView dy, bool want_dx) {
  const bool want_rows = keys_values != nullptr && keys_values->trainable();
  const bool want_qkv =
      want_dx || want_rows || norm1.trainable() || q.trainable() || k.trainable() || v.trainable();
  const bool want_branch = want_qkv || out.trainable() || is_trainable(in_branch);
  const bool want_mid = want_branch || is_trainable(after_attention);
  const bool want_n2 = want_mid || norm2.trainable();
  const bool want_hidden = want_n2 || ffn_in.trainable();
  const DType type = saved.n1.dtype();
  Arena::Scope scratch(ctx.scratch());
  const Shape narrow = saved.n1.shape();
  const auto wanted = [&](bool really) {
    return really ? ctx.scratch().take(narrow, type) : TensorView();
  };

  // Each takes dy, and what they make of it comes together in dn.
  TensorView residual = dy;
  if (in_residual != nullptr) {
    residual = wanted(want_mid);
    in_residual->backward(ctx, dy, packing, residual);
  }
  TensorView beside;
  if (beside_ffn != nullptr) {
    beside = wanted(want_mid);
    beside_ffn->backward(ctx, dy, packing, beside);
  }
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
  const TensorView dn = wanted(want_n2);
  ffn_in.backward(ctx, saved.n2, dhidden, packing, training, false, dn);
  if (!want_n2) return;
  norm2.backward(ctx, saved.norm2, dn, {}, &packing, dn, {});
  if (!want_mid) return;
  add(ctx, residual, dn, dy);
  if (!beside.empty()) add(ctx, dy, beside, dy);

  TensorView dsum = dy;
  if (after_attention != nullptr) {
    dsum = wanted(want_branch);
    after_attention->backward(ctx, dy, packing, dsum);
    if (!want_branch) return;
  }
  TensorView dbranch = dsum;
  if (in_branch != nullptr) {
    dbranch = wanted(want_qkv || out.trainable());
    in_branch->backward(ctx, dsum, packing, dbranch);
    if (dbranch.empty()) return;
  }
  TensorView dfavor;
  if (want_qkv) dfavor = ctx.scratch().take(saved.favor.shape(), type);
  out.backward(ctx, saved.favor, dbranch, packing, training, false, dfavor);
  if (!want_qkv) return;
  const bool want_n1 = want_dx || norm1.trainable();
  const auto of = [&](bool really, const Shape& rows) {
    return really ? ctx.scratch().take(rows, type) : TensorView();
  };
  const bool want_q = want_n1 || q.trainable(), want_k = want_n1 || k.trainable(),
             want_v = want_n1 || v.trainable();
  const Shape wide = saved.favor.shape();
  const TensorView dq = of(want_q, wide), dk = of(want_k, wide), dv = of(want_v, wide);
  if (keys_values == nullptr) {
    favor_attention_backward(ctx, saved.q, saved.k, saved.v, saved.mixed, dfavor, packing, heads,
                             features(training), favor, saved.context, dq, dk, dv);
  } else {
    const Shape all = saved.q.shape();
    const TensorView dmixed = of(true, all), of_q = of(want_q, all),
                     of_k = of(want_k || want_rows, all), of_v = of(want_v || want_rows, all);
    longer.remove_backward(ctx, dfavor, dmixed);
    favor_attention_backward(ctx, saved.q, saved.k, saved.v, saved.mixed, dmixed, longer.packing(),
                             heads, features(training), favor, saved.context, of_q, of_k, of_v);
    AttentionPrefixGradient rows;
    if (want_rows) rows = keys_values->gradient();
    if (want_q) longer.insert_backward(ctx, of_q, dq, {});
    if (want_k || want_rows) longer.insert_backward(ctx, of_k, dk, rows.k);
    if (want_v || want_rows) longer.insert_backward(ctx, of_v, dv, rows.v);
  }
  const TensorView dn1 = want_n1 ? dn : TensorView();
  if (!dq.empty()) q.backward(ctx, saved.n1, dq, packing, training, false, dn1);
  if (!dk.empty()) k.backward(ctx, saved.n1, dk, packing, training, true, dn1);
  if (!dv.empty()) v.backward(ctx, saved.n1, dv, packing, training, true, dn1);
  if (!want_n1) return;
  norm1.backward(ctx, saved.norm1, dn1, {}, &packing, dn1, {});
  if (want_dx) add(ctx, dsum, dn1, dy);
}

}  // namespace scgraft
