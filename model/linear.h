// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "kernels/linear.h"
#include "model/parameter.h"
#include "model/sites.h"

namespace scgraft {

// y = x W^T + b (+ what is attached at its site, or with its weight for W). The weight may be a run
// of rows of a larger parameter: the packed query, key and value projection is three Linears over
// one parameter.
class Linear {
 public:
  Linear() = default;
  // rows [begin, end) of weight [out, in] and of bias [out] (may be null).
  Linear(Parameter* weight, Parameter* bias, int64_t begin, int64_t end)
      : weight_(weight), bias_(bias), begin_(begin), end_(end) {}
  Linear(Parameter* weight, Parameter* bias) : Linear(weight, bias, 0, weight->value.dim(0)) {}

  int64_t in() const { return weight_->value.dim(1); }
  int64_t out() const { return end_ - begin_; }
  Parameter* weight() const { return weight_; }
  Parameter* bias() const { return bias_; }
  ConstTensorView weight_rows() const;
  TensorView mutable_weight_rows();

  // null detaches; not owned
  void attach(LinearSite* site) {
    weight_replaced();
    site_ = site;
    if (site_ != nullptr) site_->parameters_updated();
    weight_replaced();
  }
  LinearSite* site() const { return site_; }
  // True when a backward pass through this layer has parameter gradients to accumulate.
  bool trainable() const;

  // Products use weights rounded to this type (bf16 or the weight's own).
  void set_precision(DType product);
  // To be called after the weight's values changed: packed copies are made again when next used.
  void weight_changed();
  // The same after an optimizer step, which leaves frozen weights as they were.
  void parameters_updated() {
    if (weight_->trainable()) weight_changed();
    if (site_ != nullptr) site_->parameters_updated();
    weight_replaced();
  }

  // y [rows, out] overwritten; x [rows, in]. training: adapter dropout is active.
  void forward(Context& ctx, ConstTensorView x, const Packing& packing, bool training, TensorView y,
               const LinearEpilogue& epilogue = {});
  // Accumulates parameter gradients (+=); dx [rows, in] is overwritten, or added to when
  // `accumulate`; an empty dx is not wanted. Frozen parameters cost nothing.
  void backward(Context& ctx, ConstTensorView x, ConstTensorView dy, const Packing& packing,
                bool training, bool accumulate, TensorView dx);

 private:
  // Packed copies of what a site puts in the weight's place are old.
  void weight_replaced() {
    if (site_ != nullptr && site_->replaces_weight()) forward_stale_ = backward_stale_ = true;
  }
  PackedWeight& packed(Context& ctx, PackedFor use);

  Parameter* weight_ = nullptr;
  Parameter* bias_ = nullptr;
  int64_t begin_ = 0;
  int64_t end_ = 0;
  LinearSite* site_ = nullptr;
  DType product_ = DType::f32;
  PackedWeight forward_;
  PackedWeight backward_;
  bool forward_stale_ = true;
  bool backward_stale_ = true;
};

}  // namespace scgraft
