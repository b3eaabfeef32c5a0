// SPDX-License-Identifier: Apache-2.0
#include "model/encoder_layer.h"

#include "kernels/add.h"
#include "kernels/attention.h"
#include "kernels/pool.h"
#include "kernels/relu_dropout.h"
#include "kernels/require_tensor.h"
#include "kernels/row_dropout.h"
#include "model/tables.h"

namespace scgraft {

uint32_t dropout_site(int layer, DropoutSlot slot, uint32_t offset) {
  return static_cast<uint32_t>(RandomUse::dropout) + static_cast<uint32_t>(layer) * 16 +
         static_cast<uint32_t>(slot) + offset;
}

bool EncoderLayer::trainable() const {
  for (const HiddenSite* site : {after_attention, beside_ffn, in_branch})
    if (is_trainable(site)) return true;
  if (keys_values != nullptr && keys_values->trainable()) return true;
  return q.trainable() || k.trainable() || v.trainable() || out.trainable() || ffn_in.trainable() ||
         ffn_out.trainable() || norm1.trainable() || norm2.trainable();
}

namespace {

// Dropout acts in training only.
Dropout active(float p, bool training, int layer, DropoutSlot slot) {
  return {.p = training ? p : 0.0f, .site = dropout_site(layer, slot)};
}

}  // namespace

void EncoderLayer::forward(Context& ctx, ConstTensorView x, const Packing& packing, LayerRows which,
                           const Packing& rows, bool training, TensorView y, Saved* saved,
                           const Taps* taps, const AttentionMask& mask) {
  const int64_t tokens = packing.tokens();
  const int64_t n = rows.tokens();
  const int64_t dim = x.dim(1);
  const DType type = x.dtype();
  Arena& keep = saved != nullptr ? ctx.activations() : ctx.scratch();
  Arena::Scope scratch(ctx.scratch());

  const bool save = saved != nullptr;
  if (pre_norm) {
    const TensorView n1 = keep.take({tokens, dim}, type);
    norm1.forward(ctx, x, {}, {}, nullptr, n1, save ? &saved->norm1 : nullptr);
    x = n1;
  }
  ConstTensorView x_rows = x;
  if (which == LayerRows::cls) {
    const TensorView first = keep.take({n, dim}, type);
    pool(ctx, Pooling::cls, x, {}, packing, first);
    x_rows = first;
  }
  const TensorView queries = keep.take({n, dim}, type);
  const TensorView keys = keep.take({tokens, dim}, type);
  const TensorView values = keep.take({tokens, dim}, type);
  q.forward(ctx, x_rows, rows, training, queries);
  k.forward(ctx, x, packing, training, keys);
  v.forward(ctx, x, packing, training, values);

  AttentionPrefix front;
  if (keys_values != nullptr) {
    front = keys_values->rows();
    front = {.k = in_type(ctx, front.k, type), .v = in_type(ctx, front.v, type)};
  }

  const TensorView o = keep.take({n, dim}, type);
  const TensorView lse = keep.take({n, heads}, sum_type(type));
  attention(ctx, queries, keys, values, rows, packing, heads,
            active(attention_dropout, training, index, DropoutSlot::attention), o, lse, mask,
            front);

  const TensorView branch = scratch.take({n, dim}, type);
  out.forward(ctx, o, rows, training, branch);
  const auto tell = [&](ConstTensorView view, TensorView EncoderLayer::Taps::*tap) {
    if (taps != nullptr && !(taps->*tap).empty()) copy(ctx, view, taps->*tap);
  };
  tell(o, &Taps::attention);
  tell(branch, &Taps::attention_out);
  // What is attached in the way of rows; the rows themselves when nothing is.
  const auto through = [&](HiddenSite* site, TensorView rows_in) {
    if (site == nullptr) return rows_in;
    const TensorView out_rows = keep.take({n, dim}, type);
    site->forward(ctx, rows_in, rows, save, out_rows);
    return out_rows;
  };
  // What a site reads in its backward pass must stay.
  TensorView attention_branch = branch;
  if (in_branch != nullptr && save) {
    attention_branch = keep.take({n, dim}, type);
    copy(ctx, branch, attention_branch);
  }
  attention_branch = through(in_branch, attention_branch);
  const TensorView normed = keep.take({n, dim}, type);
  LayerNorm::Saved* const middle_saved =
      !save ? nullptr : (pre_norm ? &saved->norm2 : &saved->norm1);
  middle_norm().forward(ctx, x_rows, attention_branch,
                        active(dropout, training, index, DropoutSlot::attention_residual), &rows,
                        normed, middle_saved);
  tell(pre_norm ? x_rows : normed, &Taps::norm1);
  const TensorView h = through(after_attention, normed);

  const bool keep_hidden = saved != nullptr && ffn_out.trainable();
  const TensorView hidden =
      (keep_hidden ? ctx.activations() : ctx.scratch()).take({n, ffn_in.out()}, type);
  TensorView bits;
  if (saved != nullptr) bits = ctx.activations().take({n, (ffn_in.out() + 7) / 8}, DType::u8);
  ffn_in.forward(ctx, h, rows, training, hidden,
                 {.relu = true,
                  .dropout = active(dropout, training, index, DropoutSlot::ffn_hidden),
                  .bits = bits});
  tell(hidden, &Taps::hidden);
  ffn_out.forward(ctx, hidden, rows, training, branch);
  const Dropout drop2 = active(dropout, training, index, DropoutSlot::ffn_residual);
  if (pre_norm) {
    if (drop2.active()) row_dropout(ctx, branch, drop2, &rows, branch);
    add(ctx, h, branch, y);
    if (beside_ffn != nullptr) add(ctx, y, through(beside_ffn, h), y);
  } else {
    // The backward pass of the norm reads its result, which what is beside it would change.
    const TensorView normed2 = beside_ffn != nullptr ? keep.take({n, dim}, type) : y;
    norm2.forward(ctx, h, branch, drop2, &rows, normed2, save ? &saved->norm2 : nullptr);
    if (beside_ffn != nullptr) add(ctx, normed2, through(beside_ffn, h), y);
  }

  if (saved != nullptr) {
    saved->x = x;
    saved->x_rows = x_rows;
    saved->q = queries;
    saved->k = keys;
    saved->v = values;
    saved->front = front;
    saved->o = o;
    saved->lse = lse;
    saved->h = h;
    if (keep_hidden) saved->hidden = hidden;
    saved->bits = bits;
  }
}

void EncoderLayer::backward(Context& ctx, const Saved& saved, const Packing& packing,
                            LayerRows which, const Packing& rows, bool training, TensorView dy,
                            TensorView dx, const AttentionMask& mask) {
  const bool want_dx = !dx.empty();
  const bool want_in = want_dx || (pre_norm && norm1.trainable());  // of what the attention reads
  const bool want_q = want_in || q.trainable();
  const bool want_k = want_in || k.trainable();
  const bool want_v = want_in || v.trainable();
  const bool want_front = keys_values != nullptr && keys_values->trainable();
  const bool want_attention = want_q || want_k || want_v || want_front;
  const bool want_out = want_attention || out.trainable();
  const bool want_branch = want_out || is_trainable(in_branch);
  const bool want_middle = want_branch || middle_norm().trainable();
  const bool want_h = want_middle || is_trainable(after_attention);
  const bool want_hidden = want_h || ffn_in.trainable();

  const int64_t tokens = packing.tokens();
  const int64_t n = rows.tokens();
  const int64_t dim = saved.h.dim(1);
  const DType type = saved.h.dtype();
  Arena::Scope scratch(ctx.scratch());

  TensorView dbeside;
  if (beside_ffn != nullptr && (want_h || beside_ffn->trainable())) {
    if (want_h) dbeside = scratch.take({n, dim}, type);
    beside_ffn->backward(ctx, dy, rows, dbeside);
  }
  // Without dropout the branch gets the same gradient as the residual: one buffer serves both.
  const Dropout drop2 = active(dropout, training, index, DropoutSlot::ffn_residual);
  TensorView dbranch = dy;
  if (drop2.active() || want_h) dbranch = scratch.take({n, dim}, type);
  if (!pre_norm)
    norm2.backward(ctx, saved.norm2, dy, drop2, &rows, dy,
                   dbranch.data() == dy.data() ? TensorView() : dbranch);
  else if (drop2.active())
    row_dropout(ctx, dy, drop2, &rows, dbranch);
  TensorView dhidden;
  if (want_hidden) dhidden = scratch.take({n, ffn_in.out()}, type);
  ffn_out.backward(ctx, saved.hidden, pre_norm && !drop2.active() ? dy : dbranch, rows, training,
                   false, dhidden);
  if (!want_hidden) return;
  relu_dropout_backward(ctx, dhidden, saved.bits,
                        active(dropout, training, index, DropoutSlot::ffn_hidden), dhidden);
  ffn_in.backward(ctx, saved.h, dhidden, rows, training, true, want_h ? dy : TensorView());
  if (!want_h) return;
  if (!dbeside.empty()) add(ctx, dy, dbeside, dy);
  if (after_attention != nullptr) {
    TensorView dnormed;
    if (want_middle) dnormed = scratch.take({n, dim}, type);
    after_attention->backward(ctx, dy, rows, dnormed);
    dy = dnormed;
  }
  if (!want_middle) return;

  const Dropout drop1 = active(dropout, training, index, DropoutSlot::attention_residual);
  middle_norm().backward(ctx, pre_norm ? saved.norm2 : saved.norm1, dy, drop1, &rows, dy, dbranch);
  if (in_branch != nullptr && want_branch) {
    TensorView dsite;
    if (want_out) dsite = scratch.take({n, dim}, type);
    in_branch->backward(ctx, dbranch, rows, dsite);
    dbranch = dsite;
  }
  if (!want_out) return;
  TensorView dout;
  if (want_attention) dout = scratch.take({n, dim}, type);
  out.backward(ctx, saved.o, dbranch, rows, training, false, dout);
  if (!want_attention) return;

  TensorView dq, dk, dv;
  if (want_q) dq = dbranch;  // its gradient has been used
  if (want_k) dk = scratch.take({tokens, dim}, type);
  if (want_v) dv = scratch.take({tokens, dim}, type);
  attention_backward(ctx, saved.q, saved.k, saved.v, saved.o, saved.lse, dout, rows, packing, heads,
                     active(attention_dropout, training, index, DropoutSlot::attention), dq, dk, dv,
                     mask, saved.front,
                     want_front ? keys_values->gradient() : AttentionPrefixGradient());

  // The residual's gradient (dy) starts that of the input; with CLS rows it is scattered to the
  // first tokens.
  TensorView din = dx;
  if (want_in && !want_dx) din = scratch.take({tokens, dim}, type);
  if (want_q) q.backward(ctx, saved.x_rows, dq, rows, training, true, want_in ? dy : TensorView());
  if (!want_in) {
    if (want_k) k.backward(ctx, saved.x, dk, packing, training, false, {});
    if (want_v) v.backward(ctx, saved.x, dv, packing, training, false, {});
    return;
  }
  if (which == LayerRows::all) {
    k.backward(ctx, saved.x, dk, packing, training, true, dy);
    v.backward(ctx, saved.x, dv, packing, training, false, din);
    add(ctx, din, dy, din);
  } else {
    pool_backward(ctx, Pooling::cls, dy, {}, packing, din);
    k.backward(ctx, saved.x, dk, packing, training, true, din);
    v.backward(ctx, saved.x, dv, packing, training, true, din);
  }
  if (pre_norm) norm1.backward(ctx, saved.norm1, din, {}, &packing, dx, {});
}

}  // namespace scgraft
