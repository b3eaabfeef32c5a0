// SPDX-License-Identifier: Apache-2.0
#include "model/performer_stack.h"

#include <algorithm>

#include "kernels/require_tensor.h"
#include "model/random_features.h"
#include "model/tables.h"

namespace scgraft {
void PerformerStack::set_stabiliser(FavorStabiliser stabiliser) {
  for (PerformerLayer& layer : layers) layer.favor.stabiliser = stabiliser;
}

int64_t PerformerStack::more_rows() const {
  const int prefixed = first_prefixed();
  if (!keep_prefix_ || prefixed == size()) return 0;
  return layers[static_cast<size_t>(prefixed)].prefix->rows().dim(0);
}

Packing PerformerStack::packing() const { return more_rows() > 0 ? inserted_.packing() : tokens_; }

void PerformerStack::draw(Context& ctx) {
  const RandomState& random = ctx.random();
  const int64_t draw = random.step / redraw_interval_;
  for (size_t i = 0; i < layers.size(); ++i) {
    const Tensor& stored = layers[i].projection->value;
    Tensor& used = layers[i].drawn;
    const bool here = !used.empty() && used.device() == stored.device();
    if (here && draw == drawn_ && random.seed == drawn_seed_) continue;
    // The rehearsal of a training comes here first: its steps allocate nothing on a device.
    if (!here) used = Tensor(stored.shape(), stored.dtype(), stored.device());
    if (draw == 0) {
      copy(ctx, stored.view(), used.view());
      continue;
    }
    Tensor drawn(stored.shape(), stored.dtype());
    draw_features(random.seed, static_cast<uint32_t>(draw), static_cast<uint32_t>(i), drawn.view());
    copy(ctx, drawn.view(), used.view());
  }
  drawn_ = draw;
  drawn_seed_ = random.seed;
}

ConstTensorView PerformerStack::forward(Context& ctx, TensorView x, const Packing& packing,
                                        const EncodeOptions& options, int first_saved) {
  const int64_t d = x.dim(1);
  const DType type = x.dtype();
  if (options.training && redraw_interval_ > 0) draw(ctx);
  tokens_ = packing;
  first_saved_ = first_saved;
  saved_.assign(layers.size(), {});
  inputs_.assign(layers.size(), {});
  const int prefixed = first_prefixed();
  const int64_t count = prefix_rows(d);
  inserted_.assign(ctx, packing, count);

  // Below the frontier nothing is kept: two buffers take turns.
  TensorView spare;
  for (int i = 0; i < size(); ++i) {
    const bool save = i >= first_saved;
    PerformerLayer& layer = layers[static_cast<size_t>(i)];
    const Packing through = i >= prefixed ? inserted_.packing() : packing;
    const Shape shape{through.tokens(), d};
    if (layer.prefix != nullptr) {
      const TensorView with = ctx.activations().take(shape, type);
      if (i == prefixed)
        inserted_.insert(ctx, x, layer.prefix->rows(), with);
      else
        inserted_.replace(ctx, x, layer.prefix->rows(), with);
      x = with;
    }
    const TensorView y =
        save || spare.shape() != shape ? ctx.activations().take(shape, type) : spare;
    PerformerLayer::Taps taps;
    Arena::Scope tap_memory(ctx.scratch());
    const auto tell = [&](const char* what, ConstTensorView view) {
      Arena::Scope activations(ctx.activations());
      (*options.tap)(cat("layer", i, what), in_type(ctx, view, sum_type(view.dtype())));
    };
    if (options.tap != nullptr) {
      const Shape wide{through.tokens(), layer.q.out()};
      taps = {.n1 = tap_memory.take(shape, type),
              .q = tap_memory.take(wide, type),
              .k = tap_memory.take(wide, type),
              .v = tap_memory.take(wide, type),
              .favor = tap_memory.take(wide, type),
              .attention_out = tap_memory.take(shape, type),
              .mid = tap_memory.take(shape, type),
              .ffn_out = tap_memory.take(shape, type)};
      tell("_in", x);
    }
    if (save && recompute_) inputs_[static_cast<size_t>(i)] = x;
    layer.forward(ctx, x, through, options.training, y,
                  save && !recompute_ ? &saved_[static_cast<size_t>(i)] : nullptr,
                  options.tap != nullptr ? &taps : nullptr);
    if (options.tap != nullptr) {
      tell("_attn_prenorm", taps.n1);
      tell("_q", taps.q);
      tell("_k", taps.k);
      tell("_v", taps.v);
      tell("_favor_out", taps.favor);
      tell("_attn_out", taps.attention_out);
      tell("_mid", taps.mid);
      tell("_ff_out", taps.ffn_out);
    }
    spare = x;
    x = y;
  }
  if (prefixed < size() && !keep_prefix_) {
    const TensorView without = ctx.activations().take({packing.tokens(), d}, type);
    inserted_.remove(ctx, x, without);
    x = without;
  }
  return x;
}

TensorView PerformerStack::backward(Context& ctx, const EncodeOptions& options, TensorView dout) {
  const int64_t d = dout.dim(1);
  const int prefixed = first_prefixed();
  TensorView dy = dout;
  if (prefixed < size() && !keep_prefix_ && first_saved_ < size()) {
    dy = ctx.activations().take({inserted_.packing().tokens(), d}, dout.dtype());
    inserted_.remove_backward(ctx, dout, dy);
  }
  for (int i = size() - 1; i >= std::max(first_saved_, 0); --i) {
    PerformerLayer& layer = layers[static_cast<size_t>(i)];
    const bool to_rows = layer.prefix != nullptr && layer.prefix->trainable();
    const bool below = i > first_saved_;
    {
      const Packing through = i >= prefixed ? inserted_.packing() : tokens_;
      PerformerLayer::Saved& saved = saved_[static_cast<size_t>(i)];
      const Arena::Scope again(ctx.activations());
      if (const ConstTensorView x = inputs_[static_cast<size_t>(i)]; !x.empty())
        layer.forward(ctx, x, through, options.training,
                      ctx.activations().take({through.tokens(), d}, dy.dtype()), &saved);
      layer.backward(ctx, saved, through, options.training, dy, below || to_rows);
    }
    if (layer.prefix == nullptr || !(below || to_rows)) continue;
    const TensorView drows = to_rows ? layer.prefix->gradient() : TensorView();
    TensorView dx;
    if (below)
      dx = i == prefixed ? ctx.activations().take({tokens_.tokens(), d}, dy.dtype())
                         : ctx.activations().take(dy.shape(), dy.dtype());
    if (i == prefixed)
      inserted_.insert_backward(ctx, dy, dx, drows);
    else
      inserted_.replace_backward(ctx, dy, dx, drows);
    dy = dx;
  }
  return first_saved_ < 0 ? dy : TensorView();
}

}  // namespace scgraft
