// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <vector>

#include "model/backbone.h"
#include "model/parameter_source.h"
#include "model/performer_layer.h"
#include "model/scfoundation/config.h"

namespace scgraft {

// From rows of every entry of a cell to a value each:
//
//   h = embed x;  h through pre-norm layers with FAVOR+ attention (model/performer_layer.h)
//   y = LN(LN'(h)),  LN' being decoder.norm      prediction = final y
//
// y is what the original exports as embeddings of genes.
// Source: scFoundation (Hao et al. 2024), the second half of MaeAutobin.
class EntryDecoder {
 public:
  // features: of the attention, of the projection matrices of the file.
  EntryDecoder(const ParameterMaker& make, const ScfoundationConfig& config, int64_t features);

  int64_t dim() const { return embed_.out(); }
  bool trainable() const { return first_trainable() < size() || later_trainable(); }
  std::vector<Linear*> linears();
  std::vector<LayerNorm*> norms();
  void set_stabiliser(FavorStabiliser stabiliser);

  // x [rows, dim of the encoder] -> out [rows, 1] f32 or the type of x, overwritten.
  //   save   keep what backward() needs; want_dx: for the gradient of x too
  //   taps   "decoder_embed", "decoder_out", "norm_out"
  void forward(Context& ctx, ConstTensorView x, const Packing& packing,
               const EncodeOptions& options, bool want_dx, TensorView out);
  // dout [rows, 1]. Accumulates gradients; dx [rows, dim of the encoder] overwritten, empty where
  // want_dx was not given.
  void backward(Context& ctx, const Packing& packing, const EncodeOptions& options,
                ConstTensorView dout, TensorView dx);

 private:
  int size() const { return static_cast<int>(layers_.size()); }
  // The lowest layer with anything to train; -1: what is before them; size(): none.
  int first_trainable() const;
  bool later_trainable() const {
    return inner_norm_.trainable() || norm_.trainable() || final_.trainable();
  }

  Linear embed_, final_;
  std::vector<PerformerLayer> layers_;
  LayerNorm inner_norm_, norm_;
  std::vector<PerformerLayer::Saved> saved_;
  LayerNorm::Saved inner_saved_, norm_saved_;
  ConstTensorView x_, y_;
  int first_saved_ = 0;
};

}  // namespace scgraft
