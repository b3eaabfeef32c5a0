// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <span>
#include <string_view>
#include <vector>

#include "model/batch.h"
#include "runtime/context.h"

namespace scgraft {

// What one pass over some cells gave. Sums are over cells in order, in f64, so that cutting a batch
// into chunks changes nothing.
struct ObjectiveSums {
  double loss = 0;    // sum of the unscaled losses
  double weight = 0;  // what the loss is divided by
  double mean() const { return weight > 0 ? loss / weight : 0; }
};

// What a run minimises: the mean of a loss over the cells (or tokens) of a step. A step's cells are
// worked on in chunks; each chunk is one call.
class Objective {
 public:
  virtual ~Objective() = default;
  virtual std::string_view name() const = 0;

  // This objective's divisor for some cells: their number, the sum of their class weights, their
  // masked tokens. Known before the network runs.
  virtual double weight(std::span<const CellView> cells) const = 0;

  // Forward pass, adding to `sums`. With scale > 0 also the backward pass: accumulates the gradient
  // of scale * (sum of losses); scale = 1 / (weight of the whole step).
  virtual void run(Context& ctx, const TokenBatch& batch, bool training, double scale,
                   ObjectiveSums& sums) = 0;
};

}  // namespace scgraft
