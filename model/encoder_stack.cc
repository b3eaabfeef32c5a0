// SPDX-License-Identifier: Apache-2.0
#include "model/encoder_stack.h"

#include <algorithm>

#include "kernels/cast.h"

namespace scgraft {
namespace {

// Puts keys and values in front of a layer's own for as long as this lives.
class InFront {
 public:
  InFront(EncoderLayer& layer, KeyValueSite* site) : layer_(layer), before_(layer.keys_values) {
    if (site != nullptr) layer.keys_values = site;
  }
  ~InFront() { layer_.keys_values = before_; }
  InFront(const InFront&) = delete;
  InFront& operator=(const InFront&) = delete;

 private:
  EncoderLayer& layer_;
  KeyValueSite* before_;
};

}  // namespace

int EncoderStack::first_joined(const EncodeOptions& options, int64_t count) const {
  const int first = first_prefixed();
  if (options.tap != nullptr || count > kPrefixRows) return first;
  int layer = first;
  const auto prefixed = [&](int i) { return layers[static_cast<size_t>(i)].prefix != nullptr; };
  while (layer < size() && prefixed(layer) && (layer + 1 == size() || prefixed(layer + 1)) &&
         layers[static_cast<size_t>(layer)].keys_values == nullptr)
    ++layer;
  // One with keys and values of its own has no place for more: all rows join from there on.
  return layer;
}

AttentionMask EncoderStack::mask(bool longer) const {
  const PreparedArray<int64_t>& bits = longer ? longer_key_bits_ : key_bits_;
  if (bits.host.empty()) return {};
  return {.key_bits = bits.view()};
}

void EncoderStack::forward(Context& ctx, TensorView x, const Packing& packing, const Packing& rows,
                           const EncodeOptions& options, int first_saved, TensorView out) {
  const int64_t d = x.dim(1);
  type_ = x.dtype();
  first_saved_ = first_saved;
  saved_.assign(layers.size(), {});
  inputs_.assign(layers.size(), {});
  const int64_t all = prefix_rows(d);
  const int joined = joined_ = first_joined(options, all);
  const int64_t count = joined < size() ? all : 0;
  prefix_keys_.resize(layers.size());
  inserted_.assign(ctx, packing, count);
  key_bits_.host.clear();
  longer_key_bits_.host.clear();
  if (!options.visible.empty()) {
    key_bits_.host = pack_key_bits(packing, options.visible);
    std::vector<uint8_t> longer;
    for (int64_t cell = 0; count > 0 && cell < packing.cells(); ++cell)
      for (int64_t i = packing.begin(cell); i < packing.end(cell); ++i) {
        longer.push_back(options.visible[static_cast<size_t>(i)]);
        if (i == packing.begin(cell)) longer.insert(longer.end(), static_cast<size_t>(count), 1);
      }
    if (count > 0) longer_key_bits_.host = pack_key_bits(inserted_.packing(), longer);
    key_bits_memory_.send(ctx, key_bits_, longer_key_bits_);
  }

  // Below the frontier nothing is kept: two buffers take turns.
  TensorView spare;
  for (size_t i = 0; i < layers.size(); ++i) {
    const int layer = static_cast<int>(i);
    const bool last = i + 1 == layers.size();
    const bool save = layer >= first_saved;
    const bool longer = layer >= joined;
    const Packing through = longer ? inserted_.packing() : packing;
    const bool cls = last && options.rows == LayerRows::cls;
    const Packing produced = cls ? rows : through;
    const int64_t n = produced.tokens();
    const auto tell = [&](const char* what, ConstTensorView view) {
      Arena::Scope activations(ctx.activations());
      if (view.dtype() != out.dtype()) {
        const TensorView other = ctx.activations().take(view.shape(), out.dtype());
        cast(ctx, view, other);
        view = other;
      }
      (*options.tap)(cat("layer", i, what), view);
    };
    if (options.tap != nullptr) tell("_in", x);
    if (last && !options.before_last.empty()) {
      TensorView before = x;
      if (layer > joined) {
        before = ctx.activations().take(options.before_last.shape(), type_);
        inserted_.remove(ctx, x, before);
      }
      if (type_ == options.before_last.dtype())
        copy(ctx, before, options.before_last);
      else
        cast(ctx, before, options.before_last);
      if (out.empty()) return;
    }
    const bool keys_alone = layers[i].prefix != nullptr && !longer;
    if (keys_alone) {
      prefix_keys_[i].forward(ctx, layers[i], options.training, type_);
    } else if (layers[i].prefix != nullptr) {
      const TensorView with = ctx.activations().take({through.tokens(), d}, type_);
      if (layer == joined)
        inserted_.insert(ctx, x, layers[i].prefix->rows(), with);
      else
        inserted_.replace(ctx, x, layers[i].prefix->rows(), with);
      x = with;
    }
    TensorView y = out;
    if (!last || type_ != out.dtype() || n != out.dim(0)) {
      if (layer + 1 >= first_saved || spare.shape() != (Shape{n, d}))
        y = ctx.activations().take({n, d}, type_);
      else
        y = spare;
    }
    EncoderLayer::Taps taps;
    Arena::Scope tap_memory(ctx.scratch());
    if (options.tap != nullptr) {
      taps = {.attention = tap_memory.take({n, d}, type_),
              .attention_out = tap_memory.take({n, d}, type_),
              .norm1 = tap_memory.take({n, d}, type_),
              .hidden = tap_memory.take({n, layers[i].ffn_in.out()}, type_)};
    }
    if (save && recompute_) inputs_[i] = x;
    const InFront front(layers[i], keys_alone ? &prefix_keys_[i] : nullptr);
    layers[i].forward(ctx, x, through, cls ? LayerRows::cls : LayerRows::all, produced,
                      options.training, y, save && !recompute_ ? &saved_[i] : nullptr,
                      options.tap != nullptr ? &taps : nullptr, mask(longer));
    if (options.tap != nullptr) {
      tell("_attn_context", taps.attention);
      tell("_attn_out", taps.attention_out);
      tell("_norm1", taps.norm1);
      tell("_ffn_hidden", taps.hidden);
    }
    spare = x;
    x = y;
    if (last && longer && !cls) {
      const bool here = type_ == out.dtype();
      const TensorView without = here ? out : ctx.activations().take(out.shape(), type_);
      inserted_.remove(ctx, x, without);
      x = without;
    }
    if (options.tap != nullptr) tell("_out", x);
  }
  if (x.data() != out.data()) cast(ctx, x, out);
}

TensorView EncoderStack::backward(Context& ctx, const Packing& packing, const Packing& rows,
                                  const EncodeOptions& options, TensorView dout) {
  const int64_t d = dout.dim(1);
  const bool cls = options.rows == LayerRows::cls;
  TensorView dy = dout;
  if (type_ != dout.dtype() && first_saved_ < size()) {
    dy = ctx.activations().take(dout.shape(), type_);
    cast(ctx, dout, dy);
  }
  if (joined_ < size() && first_saved_ < size() && !cls) {
    const TensorView longer = ctx.activations().take({inserted_.packing().tokens(), d}, type_);
    inserted_.remove_backward(ctx, dy, longer);
    dy = longer;
  }
  TensorView spare;
  for (int i = size() - 1; i >= std::max(first_saved_, 0); --i) {
    EncoderLayer& layer = layers[static_cast<size_t>(i)];
    const bool last_cls = i + 1 == size() && cls;
    const bool longer = i >= joined_;
    const Packing through = longer ? inserted_.packing() : packing;
    const bool to_rows = longer && layer.prefix != nullptr && layer.prefix->trainable();
    PrefixKeys* const keys =
        layer.prefix != nullptr && !longer ? &prefix_keys_[static_cast<size_t>(i)] : nullptr;
    if (keys != nullptr) keys->begin_backward(ctx);
    TensorView dx;
    if (i > first_saved_ || to_rows) {
      const Shape shape{through.tokens(), d};
      dx = spare.shape() == shape ? spare : ctx.activations().take(shape, type_);
    }
    {
      const InFront front(layer, keys);
      const LayerRows which = last_cls ? LayerRows::cls : LayerRows::all;
      const Packing produced = last_cls ? rows : through;
      EncoderLayer::Saved& saved = saved_[static_cast<size_t>(i)];
      const Arena::Scope again(ctx.activations());
      if (const ConstTensorView x = inputs_[static_cast<size_t>(i)]; !x.empty())
        layer.forward(ctx, x, through, which, produced, options.training,
                      ctx.activations().take({produced.tokens(), d}, type_), &saved, nullptr,
                      mask(longer));
      layer.backward(ctx, saved, through, which, produced, options.training, dy, dx, mask(longer));
    }
    if (keys != nullptr) keys->backward(ctx, layer, options.training);
    spare = dy.shape() == dx.shape() ? dy : TensorView();
    dy = dx;
    if (layer.prefix == nullptr || !longer) continue;
    const TensorView drows = to_rows ? layer.prefix->gradient() : TensorView();
    TensorView below;
    if (i > first_saved_)
      below =
          ctx.activations().take({i == joined_ ? packing.tokens() : through.tokens(), d}, type_);
    if (dy.empty()) continue;
    if (i == joined_)
      inserted_.insert_backward(ctx, dy, below, drows);
    else
      inserted_.replace_backward(ctx, dy, below, drows);
    dy = below;
  }
  return first_saved_ < 0 ? dy : TensorView();
}

}  // namespace scgraft
