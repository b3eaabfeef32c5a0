// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <span>
#include <string_view>
#include <vector>

#include "model/batch.h"
#include "runtime/context.h"
#include "runtime/tensor.h"

namespace scgraft {

// What one pass over some cells gave. Sums are over cells in order, in f64, so that cutting a batch
// into chunks changes nothing.
struct ObjectiveSums {
  double loss = 0;    // sum of the unscaled losses, on a device after settle()
  double weight = 0;  // what the loss is divided by
  double mean() const { return weight > 0 ? loss / weight : 0; }

  // Adds the losses of the cells of a chunk [cells] f32; `more` is a second loss of each, or empty.
  // On a device they stay there until settle() or send(), so that the host need not wait for every
  // chunk.
  void add(Context& ctx, ConstTensorView losses, ConstTensorView more = {});
  // Room for so many losses on a device: add() then neither waits nor allocates.
  void reserve(Context& ctx, int64_t losses);
  // Waits for what add() was given.
  void settle(Context& ctx);
  struct Totals {
    double loss = 0;
    double weight = 0;
    double mean() const { return weight > 0 ? loss / weight : 0; }
  };
  // What has come together so far; waits as settle() does.
  Totals totals(Context& ctx);
  // What add() was given since the last wait, where it is: losses [n] f32 on a device, on the CPU
  // their sum so far [1] f64. Not finite when a loss is not.
  ConstTensorView unsettled() const;

  // Sums on their way to the host.
  class Sent {
   public:
    // What they are, once the host has waited for the context's stream or for an event behind
    // send().
    Totals totals() const;

   private:
    friend struct ObjectiveSums;
    Totals before_;
    Tensor losses_;  // in staging memory, the first count_ of it
    int64_t count_ = 0;
  };
  // Replaces what `to` holds by the sums; does not wait. Memory is kept.
  void send(Context& ctx, Sent& to) const;
  // Back to nothing, or to what totals() was; memory is kept.
  void reset();
  void reset(Totals to);

 private:
  void keep(Context& ctx, ConstTensorView losses);

  Tensor kept_;  // losses on the device, the first waiting_ of it
  int64_t waiting_ = 0;
};

// The gradient that an objective computes is that of value * (*factor) * (sum of losses).
struct GradientScale {
  GradientScale(double the_value,
                ConstTensorView the_factor = {})  // NOLINT: 0 and 1 / n are scales
      : value(the_value), factor(the_factor) {}
  double value;            // 0: no gradient is wanted
  ConstTensorView factor;  // [1] f64 where the context runs, see loss_scale(); empty: 1
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

  // Forward pass, adding to `sums`. With scale.value > 0 also the backward pass: accumulates the
  // gradient; scale.value = 1 / (weight of the whole step). The batch is on the device of the
  // context.
  virtual void run(Context& ctx, const TokenBatch& batch, bool training, const GradientScale& scale,
                   ObjectiveSums& sums) = 0;
};

}  // namespace scgraft
