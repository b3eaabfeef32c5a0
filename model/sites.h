// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <span>

#include "kernels/linear.h"

namespace scgraft {

// Places of a backbone where something may attach, in the smallest possible terms. The backbone
// knows these interfaces and nothing of what implements them; adapters/ does.

// Beside a linear projection: low-rank terms that its product adds.
class LinearSite {
 public:
  virtual ~LinearSite() = default;
  // training: dropout of the terms is active.
  virtual std::span<const LowRank> terms(bool training) = 0;
  // True when backward() has gradients to accumulate.
  virtual bool trainable() const = 0;
  // Accumulates the terms' own gradients from the projection's input x [rows, in] and the gradient
  // of its output dy [rows, out].
  virtual void backward(Context& ctx, ConstTensorView x, ConstTensorView dy,
                        const Packing& packing) = 0;
};

}  // namespace scgraft
