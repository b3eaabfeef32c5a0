// SPDX-License-Identifier: Apache-2.0
#include "model/scfoundation/decoder.h"

#include <algorithm>

#include "model/tables.h"

namespace scgraft {

EntryDecoder::EntryDecoder(const ParameterMaker& make, const ScfoundationConfig& config,
                           int64_t features) {
  const int64_t d = config.decoder_dim;
  const int64_t inner = config.decoder_heads * config.decoder_head_dim;
  embed_ = make.linear("decoder_embed", config.dim, d);
  for (int i = 0; i < config.decoder_layers; ++i) {
    const std::string name = cat("decoder.performer.net.layers.", i);
    PerformerLayer layer;
    layer.heads = config.decoder_heads;
    layer.norm1 = make.norm(name + ".0.norm", d);
    layer.projection = &make.parameter(name + ".0.fn.fast_attention.projection_matrix",
                                       {features, config.decoder_head_dim});
    layer.q = make.linear(name + ".0.fn.to_q", d, inner);
    layer.k = make.linear(name + ".0.fn.to_k", d, inner);
    layer.v = make.linear(name + ".0.fn.to_v", d, inner);
    layer.out = make.linear(name + ".0.fn.to_out", inner, d);
    layer.norm2 = make.norm(name + ".1.norm", d);
    layer.ffn_in = make.linear(name + ".1.fn.fn.w1", d, 4 * d);
    layer.ffn_out = make.linear(name + ".1.fn.fn.w2", 4 * d, d);
    layers_.push_back(std::move(layer));
  }
  inner_norm_ = make.norm("decoder.norm", d);
  norm_ = make.norm("norm", d);
  final_ = make.linear("to_final", d, 1);
}

std::vector<Linear*> EntryDecoder::linears() {
  std::vector<Linear*> all = {&embed_, &final_};
  for (PerformerLayer& layer : layers_)
    for (Linear* linear : layer.linears()) all.push_back(linear);
  return all;
}

std::vector<LayerNorm*> EntryDecoder::norms() {
  std::vector<LayerNorm*> all = {&inner_norm_, &norm_};
  for (PerformerLayer& layer : layers_)
    for (LayerNorm* norm : {&layer.norm1, &layer.norm2}) all.push_back(norm);
  return all;
}

void EntryDecoder::set_stabiliser(FavorStabiliser stabiliser) {
  for (PerformerLayer& layer : layers_) layer.favor.stabiliser = stabiliser;
}

int EntryDecoder::first_trainable() const {
  if (embed_.trainable()) return -1;
  const auto first = std::find_if(layers_.begin(), layers_.end(),
                                  [](const PerformerLayer& layer) { return layer.trainable(); });
  return static_cast<int>(first - layers_.begin());
}

void EntryDecoder::forward(Context& ctx, ConstTensorView x, const Packing& packing,
                           const EncodeOptions& options, bool want_dx, TensorView out) {
  const Shape shape{x.dim(0), dim()};
  const DType type = x.dtype();
  const auto tell = [&](const char* name, ConstTensorView view) {
    if (options.tap == nullptr) return;
    Arena::Scope activations(ctx.activations());
    (*options.tap)(name, in_type(ctx, view, out.dtype()));
  };
  first_saved_ = !options.save ? size() : want_dx ? -1 : first_trainable();
  saved_.assign(layers_.size(), {});
  x_ = x;
  TensorView h = ctx.activations().take(shape, type), spare;
  embed_.forward(ctx, x, packing, options.training, h);
  tell("decoder_embed", h);
  for (int i = 0; i < size(); ++i) {
    const auto at = static_cast<size_t>(i);
    const bool save = i >= first_saved_;
    const TensorView y = save || spare.empty() ? ctx.activations().take(shape, type) : spare;
    layers_[at].forward(ctx, h, packing, options.training, y, save ? &saved_[at] : nullptr);
    spare = save ? TensorView() : h;
    h = y;
  }
  const TensorView inner = ctx.activations().take(shape, type);
  const TensorView y = ctx.activations().take(shape, type);
  inner_norm_.forward(ctx, h, {}, {}, nullptr, inner, options.save ? &inner_saved_ : nullptr);
  tell("decoder_out", inner);
  norm_.forward(ctx, inner, {}, {}, nullptr, y, options.save ? &norm_saved_ : nullptr);
  tell("norm_out", y);
  final_.forward(ctx, y, packing, options.training, out);
  y_ = y;
}

void EntryDecoder::backward(Context& ctx, const Packing& packing, const EncodeOptions& options,
                            ConstTensorView dout, TensorView dx) {
  const bool below = first_saved_ < size();
  const bool want_dy = below || inner_norm_.trainable() || norm_.trainable();
  Arena::Scope scratch(ctx.scratch());
  TensorView dy;
  if (want_dy) dy = scratch.take(y_.shape(), y_.dtype());
  final_.backward(ctx, y_, in_type(ctx, dout, y_.dtype()), packing, options.training, false, dy);
  if (!want_dy) return;
  norm_.backward(ctx, norm_saved_, dy, {}, &packing, dy, {});
  if (!below && !inner_norm_.trainable()) return;
  inner_norm_.backward(ctx, inner_saved_, dy, {}, &packing, dy, {});
  for (int i = size() - 1; i >= std::max(first_saved_, 0); --i)
    layers_[static_cast<size_t>(i)].backward(ctx, saved_[static_cast<size_t>(i)], packing,
                                             options.training, dy, i > first_saved_);
  if (first_saved_ < 0) embed_.backward(ctx, x_, dy, packing, options.training, false, dx);
}

}  // namespace scgraft
