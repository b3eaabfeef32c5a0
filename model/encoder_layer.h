// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <array>

#include "kernels/attention_mask.h"
#include "kernels/packing.h"
#include "model/linear.h"
#include "model/norm.h"

namespace scgraft {

// Where in a layer a dropout acts; site number = RandomUse::dropout + layer * 16 + slot.
enum class DropoutSlot : uint32_t {
  attention = 0,
  attention_residual = 1,
  ffn_hidden = 2,
  ffn_residual = 3,
  adapter = 4,  // + 0..5: q, k, v, out, ffn_in, ffn_out
};
uint32_t dropout_site(int layer, DropoutSlot slot, uint32_t offset = 0);

// Which rows a layer must produce.
enum class LayerRows {
  all,  // every token
  cls,  // the first token of each cell only: queries, out projection, FFN and norms of that row
};

// One transformer encoder layer, post-norm:
//
//   h = LN1(x + drop(out(attention(q(x), k(x), v(x)))))
//   y = LN2(h + drop(ffn_out(drop(relu(ffn_in(h))))))
//
// or pre-norm as scGPT has it, whose residuals carry what is normalised:
//
//   n = LN1(x)
//   h = LN2(n + drop(out(attention(q(n), k(n), v(n)))))
//   y = h + drop(ffn_out(drop(relu(ffn_in(h)))))
//
// With something attached, a(.) to what the feed-forward part reads, b(.) beside that part and c(.)
// in the attention's branch:
//
//   h = a(LN(... + drop(c(out(...)))))        y = ... + b(h)
//
// Parameters accumulate gradients, activations are overwritten.
struct EncoderLayer {
  Linear q, k, v, out, ffn_in, ffn_out;
  LayerNorm norm1, norm2;
  HiddenSite* after_attention = nullptr;  // a; not owned, as the next two
  HiddenSite* beside_ffn = nullptr;       // b
  HiddenSite* in_branch = nullptr;        // c
  KeyValueSite* keys_values = nullptr;    // in front of k(x) and v(x)
  PrefixSite* prefix = nullptr;           // for whoever calls the layers; not owned
  int64_t heads = 1;
  int index = 0;
  bool pre_norm = false;
  float dropout = 0;            // of both branches and of the hidden rows
  float attention_dropout = 0;  // of the attention's probabilities

  // What the backward pass reads; views into the activation arena.
  struct Saved {
    ConstTensorView x;        // [tokens, dim] x, or n
    ConstTensorView x_rows;   // the same, or its CLS rows
    ConstTensorView q, k, v;  // [rows or tokens, dim]
    AttentionPrefix front;    // of keys_values, in the type of q
    ConstTensorView o, lse;   // [rows, dim], [rows, heads]
    ConstTensorView h;        // [rows, dim]
    ConstTensorView hidden;   // [rows, ffn]: only when ffn_out has something to train
    ConstTensorView bits;     // [rows, ffn / 8]
    LayerNorm::Saved norm1, norm2;
  };
  // Named activations for `trace`; empty views are not filled.
  struct Taps {
    TensorView attention = {};      // [rows, dim] heads side by side, before the out projection
    TensorView attention_out = {};  // [rows, dim] after it
    TensorView norm1 = {};          // [rows, dim] result of LN1
    TensorView hidden = {};         // [rows, ffn] after relu
  };

  static constexpr std::array<const char*, 3> kHiddenSites = {"mid", "ffn.beside", "attn.branch"};
  std::array<HiddenSite**, 3> hidden_sites() { return {&after_attention, &beside_ffn, &in_branch}; }
  std::array<Linear*, 6> linears() { return {&q, &k, &v, &out, &ffn_in, &ffn_out}; }
  std::array<LayerNorm*, 2> norms() { return {&norm1, &norm2}; }
  bool trainable() const;

  // x [tokens, dim], y [rows, dim] overwritten. packing: of the tokens; rows: of the rows produced
  // (packing itself, or one row per cell). saved null: inference, nothing is kept.
  // mask: of the attention, the same in both directions.
  void forward(Context& ctx, ConstTensorView x, const Packing& packing, LayerRows which,
               const Packing& rows, bool training, TensorView y, Saved* saved,
               const Taps* taps = nullptr, const AttentionMask& mask = {});
  // dy [rows, dim] is consumed as scratch. dx [tokens, dim] overwritten; empty: nothing below wants
  // it, and whatever only it needs is skipped.
  void backward(Context& ctx, const Saved& saved, const Packing& packing, LayerRows which,
                const Packing& rows, bool training, TensorView dy, TensorView dx,
                const AttentionMask& mask = {});

 private:
  // The norm that the attention's branch goes into.
  LayerNorm& middle_norm() { return pre_norm ? norm2 : norm1; }
};

}  // namespace scgraft
