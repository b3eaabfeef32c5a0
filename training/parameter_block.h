// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <span>
#include <string>
#include <vector>

#include "kernels/adamw.h"
#include "model/parameter.h"

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
  // Euclidean norm of the gradient. Waits for a device.
  double gradient_norm(Context& ctx);
  // One AdamW update with the norm gradient_norm() found; false when it was skipped because the
  // norm is not finite.
  bool update(Context& ctx, const AdamWOptions& options);

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
  Tensor m_, v_, norm_;
  TensorView flat_values() const;
  TensorView flat_gradients() const;
};

}  // namespace scgraft
