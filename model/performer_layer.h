// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <array>

#include "kernels/favor_attention.h"
#include "kernels/packing.h"
#include "model/inserted_rows.h"
#include "model/linear.h"
#include "model/norm.h"
#include "model/sites.h"

namespace scgraft {

// One pre-norm layer with FAVOR+ attention (Performer):
//
//   mid = x + out(favor(q(n), k(n), v(n)))    n = LN1(x)
//   y   = mid + ffn_out(gelu(ffn_in(LN2(mid))))
//
// With something attached, a(.) after the attention part, b(.) beside the feed-forward part, c(.)
// in the attention's branch and r(.) in the way of the second residual:
//
//   mid = a(x + c(out(...)))                  y = r(mid) + ffn_out(...) + b(mid)
//
// Keys and values in front of those of a cell (keys_values) take part in its sums as its own do;
// the stabiliser of the keys is over them too.
//
// Parameters accumulate gradients, activations are overwritten.
struct PerformerLayer {
  Linear q, k, v, out, ffn_in, ffn_out;
  LayerNorm norm1, norm2;
  Parameter* projection = nullptr;  // [features, head_dim] random features; never trained
  Tensor drawn;                     // as projection, in its place while training; may be empty
  int64_t heads = 1;
  FavorOptions favor;
  HiddenSite* after_attention = nullptr;  // a; not owned, as the next three
  HiddenSite* beside_ffn = nullptr;       // b
  HiddenSite* in_branch = nullptr;        // c
  HiddenSite* in_residual = nullptr;      // r
  KeyValueSite* keys_values = nullptr;    // beside k(n) and v(n)
  PrefixSite* prefix = nullptr;           // for whoever calls the layers; not owned
  InsertedRows longer;                    // the rows of attention with those of keys_values

  // What the backward pass reads; views into the activation arena.
  struct Saved {
    ConstTensorView n1, n2;          // [tokens, dim] after the norms
    ConstTensorView q, k, v, mixed;  // [tokens, heads * head_dim] of attention, with more rows
                                     // where there are keys_values
    ConstTensorView favor;           // [tokens, heads * head_dim] its result, of the tokens
    ConstTensorView pre;             // [tokens, ffn] before gelu
    FavorContext context;
    LayerNorm::Saved norm1, norm2;
  };
  // Named activations for `trace`; empty views are not filled.
  struct Taps {
    TensorView n1 = {};                             // [tokens, dim]
    TensorView q = {}, k = {}, v = {}, favor = {};  // [tokens, heads * head_dim]
    TensorView attention_out = {};                  // [tokens, dim] after the out projection
    TensorView mid = {};                            // [tokens, dim]
    TensorView ffn_out = {};                        // [tokens, dim] before the residual
  };

  static constexpr std::array<const char*, 4> kHiddenSites = {"mid", "ffn.beside", "attn.branch",
                                                              "ffn.residual"};
  std::array<HiddenSite**, 4> hidden_sites() {
    return {&after_attention, &beside_ffn, &in_branch, &in_residual};
  }
  std::array<Linear*, 6> linears() { return {&q, &k, &v, &out, &ffn_in, &ffn_out}; }
  std::array<LayerNorm*, 2> norms() { return {&norm1, &norm2}; }
  bool trainable() const;
  ConstTensorView features(bool training) const {
    return (training && !drawn.empty() ? drawn : std::as_const(projection->value)).view();
  }

  // x, y [tokens, dim]; y overwritten. saved null: inference, nothing is kept.
  void forward(Context& ctx, ConstTensorView x, const Packing& packing, bool training, TensorView y,
               Saved* saved, const Taps* taps = nullptr);
  // What each token receives from the attention of this layer on rows x, in inference.
  //   received  [heads, tokens]  sum_type() of x, overwritten (kernels/favor_attention_received.h)
  void received(Context& ctx, ConstTensorView x, const Packing& packing, TensorView received);
  // dy [tokens, dim] is consumed and, with want_dx, becomes the gradient of x.
  void backward(Context& ctx, const Saved& saved, const Packing& packing, bool training,
                TensorView dy, bool want_dx);
};

}  // namespace scgraft
