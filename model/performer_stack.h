// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <vector>

#include "model/backbone.h"
#include "model/inserted_rows.h"
#include "model/layer_stack.h"
#include "model/performer_layer.h"

namespace scgraft {

// The layers of a Performer and a pass through all of them.
class PerformerStack : public LayerStack<PerformerLayer> {
 public:
  using LayerStack::LayerStack;

  void set_stabiliser(FavorStabiliser stabiliser);
  // Passes in training use random features drawn by (ctx.random(), layer) once `interval` steps
  // have been done, and others after every further `interval`; 0: those of the parameters always.
  // All other passes use those of the parameters.
  void redraw_features(int64_t interval) { redraw_interval_ = interval; }
  // Whether the rows of a prefix stay where they are after the last layer. By default they go.
  void keep_prefix(bool keep) { keep_prefix_ = keep; }
  // Rows that a cell of the result has beyond its tokens.
  int64_t more_rows() const;

  // x [tokens, dim] is overwritten with options.save unset. The result [tokens, dim], longer where
  // a prefix is kept, lies in the arena of activations. Layers from first_saved on keep what
  // backward() needs (size(): none; -1: the input's gradient is wanted too). Taps get "layer<i>"
  // and _in, _attn_prenorm, _q, _k, _v, _favor_out, _attn_out, _mid, _ff_out, in f32 or f64.
  ConstTensorView forward(Context& ctx, TensorView x, const Packing& packing,
                          const EncodeOptions& options, int first_saved);
  // Of the rows that forward() gave.
  Packing packing() const;
  // dout, of the shape of the result, is consumed. Returns the gradient of x, in memory of the
  // arena of activations, or an empty view where first_saved was not -1.
  TensorView backward(Context& ctx, const EncodeOptions& options, TensorView dout);

 private:
  void draw(Context& ctx);

  std::vector<PerformerLayer::Saved> saved_;
  std::vector<ConstTensorView> inputs_;  // of the layers that are computed again
  InsertedRows inserted_;
  Packing tokens_;
  bool keep_prefix_ = false;
  int64_t redraw_interval_ = 0;
  // Of `drawn` in the layers: the seed and how many draws there were; 0: the parameters.
  uint64_t drawn_seed_ = 0;
  int64_t drawn_ = -1;
  int first_saved_ = 0;
};

}  // namespace scgraft
