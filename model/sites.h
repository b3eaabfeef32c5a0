// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <span>

#include "kernels/attention_mask.h"
#include "kernels/linear.h"

namespace scgraft {

class Linear;

// Places of a backbone where something may attach, in the smallest possible terms. The backbone
// knows these interfaces and nothing of what implements them; adapters/ does.

// Beside a linear projection: low-rank terms that its product adds, or another weight.
class LinearSite {
 public:
  virtual ~LinearSite() = default;
  // training: dropout of the terms is active. They are valid until the next call.
  //   beside  the projection they are added to
  virtual std::span<const LowRank> terms(Context& ctx, const Linear& beside, bool training) = 0;
  // True when weight() takes the place of the projection's.
  virtual bool replaces_weight() const { return false; }
  // What the projection multiplies with, of the shape and type of beside.weight_rows(); valid until
  // the next call after parameters_updated().
  virtual ConstTensorView weight(Context&, const Linear&) { return {}; }
  // True when backward() has gradients to accumulate.
  virtual bool trainable() const = 0;
  // Accumulates the site's own gradients from the projection's input x [rows, in] and the gradient
  // of its output dy [rows, out].
  virtual void backward(Context& ctx, const Linear& beside, ConstTensorView x, ConstTensorView dy,
                        const Packing& packing) = 0;
  // To be called after an optimizer step, and after the parameters or the weight of the projection
  // changed or moved: for terms that are made of these.
  virtual void parameters_updated() {}
};

// In the way of rows: what a layer computes goes through it.
//
//   y = f(x), row by row;  x, y [rows, dim]
class HiddenSite {
 public:
  virtual ~HiddenSite() = default;
  // y is overwritten and is not x. save: what backward() reads is kept in ctx.activations(), and x
  // stays as it is until then; one pass at a time.
  virtual void forward(Context& ctx, ConstTensorView x, const Packing& rows, bool save,
                       TensorView y) = 0;
  virtual bool trainable() const = 0;
  // Accumulates the site's own gradients. dx [rows, dim] is overwritten and is not dy; empty: not
  // wanted.
  virtual void backward(Context& ctx, ConstTensorView dy, const Packing& rows, TensorView dx) = 0;
  // To be called after an optimizer step, and after the parameters moved.
  virtual void parameters_updated() = 0;
};
inline bool is_trainable(const HiddenSite* site) { return site != nullptr && site->trainable(); }

// Rows that join the tokens of every cell, behind the first one, from a layer on. They are queries,
// keys and values there and in the layers above; where a layer above has rows of its own these take
// their place, and after the last layer they are gone. Where only the keys and values are read,
// only these may be computed (model/prefix_keys.h).
class PrefixSite {
 public:
  virtual ~PrefixSite() = default;
  virtual ConstTensorView rows() const = 0;  // [count, dim]; count is that of all layers
  virtual bool trainable() const = 0;
  virtual TensorView gradient() = 0;  // of rows(), to be added to; when trainable
};

// Keys and values that every query of a layer sees beside those of its cell, and nothing else of a
// token: no query, no row of the result.
class KeyValueSite {
 public:
  virtual ~KeyValueSite() = default;
  virtual AttentionPrefix rows() const = 0;  // of the type of the parameters
  virtual bool trainable() const = 0;
  virtual AttentionPrefixGradient gradient() = 0;  // of rows(), to be added to; when trainable
};

}  // namespace scgraft
