// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <span>
#include <string>
#include <vector>

#include "kernels/adamw.h"
#include "model/parameter.h"
#include "training/precision.h"

namespace scgraft {

// The trained parameters of a run, side by side: one flat array each of values, gradients and the
// two moments of the optimizer, so that an update is one pass over memory and a frozen parameter
// costs no state at all. Parameters keep their names and shapes; their storage moves here.
class ParameterBlock {
 public:
  // Takes over the storage of `parameters` (all f32 or all f64, on one device) and gives each a
  // zero gradient there.
  // weight_decay: of matrices; vectors (biases, norms) get none.
  ParameterBlock(std::vector<Parameter*> parameters, double weight_decay);

  int64_t numel() const { return numel_; }
  const std::vector<Parameter*>& parameters() const { return parameters_; }

  void zero_gradients(Context& ctx);
  // From now on the gradient is that of the loss times scale.initial, or what its rule makes of it.
  void set_loss_scale(const LossScale& scale);
  // [1] f64 where the parameters are: the factor that the gradient of the next step must have.
  ConstTensorView loss_scale() const;
  // One AdamW update with the gradients there are, clipped by their norm, when these and the losses
  // of the step are finite; else nothing changes, now and in later calls, until resume(). The host
  // does not wait to know. options: gradient_scale, step and scale_rule are the block's own.
  //   losses  f32, on the CPU f32 or f64, of any shape
  void update(Context& ctx, ConstTensorView losses, AdamWOptions options);
  // Allows updates again after one that was not finite.
  void resume(Context& ctx);
  // Bytes of an UpdateState, which is what became of the last update.
  ConstTensorView state() const { return std::as_const(state_).view(); }

  // Copies of the current values, and back: the best parameters of a run.
  std::vector<Tensor> snapshot() const;
  void restore(const std::vector<Tensor>& values);

 private:
  std::vector<Parameter*> parameters_;
  std::vector<AdamWSegment> segments_;
  int64_t numel_ = 0;
  DType dtype_ = DType::f32;
  Device device_;
  std::shared_ptr<Buffer> values_, gradients_;
  ScaleRule scale_rule_;
  Tensor m_, v_, norm_, state_;
  TensorView flat_values() const;
  TensorView flat_gradients() const;
  TensorView state_part(size_t offset, DType dtype);
};

}  // namespace scgraft
