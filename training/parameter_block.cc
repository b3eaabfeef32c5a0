// SPDX-License-Identifier: Apache-2.0
#include "training/parameter_block.h"

#include <cstddef>

namespace scgraft {

ParameterBlock::ParameterBlock(std::vector<Parameter*> parameters, double weight_decay)
    : parameters_(std::move(parameters)) {
  // Every parameter starts on a 64-byte boundary; the gap holds zeros and stays zero.
  std::vector<int64_t> begins;
  if (!parameters_.empty()) {
    dtype_ = parameters_.front()->value.dtype();
    device_ = parameters_.front()->value.device();
  }
  const int64_t align = 64 / size_of(dtype_);
  for (const Parameter* p : parameters_) {
    require<TypeError>(p->value.dtype() == dtype_, "trained parameters are ", dtype_, ", ", p->name,
                       " is ", p->value.dtype());
    require<DeviceError>(p->value.device() == device_, "trained parameters are on ", device_, ", ",
                         p->name, " is on ", p->value.device());
    begins.push_back(numel_);
    segments_.push_back({.begin = numel_,
                         .end = numel_ + p->value.numel(),
                         .weight_decay = p->value.rank() >= 2 ? weight_decay : 0.0});
    numel_ += (p->value.numel() + align - 1) / align * align;
  }
  const int64_t size = size_of(dtype_);
  values_ = std::make_shared<Buffer>(numel_ * size, device_);
  gradients_ = std::make_shared<Buffer>(numel_ * size, device_);
  for (size_t i = 0; i < parameters_.size(); ++i) {
    Parameter& p = *parameters_[i];
    const Shape shape = p.value.shape();
    const int64_t nbytes = p.value.nbytes();
    Tensor value(Buffer::slice(values_, begins[i] * size, nbytes), shape, dtype_);
    copy(std::as_const(p.value).view(), value.view());
    p.value = std::move(value);
    p.grad = Tensor(Buffer::slice(gradients_, begins[i] * size, nbytes), shape, dtype_);
  }
  m_ = Tensor({numel_}, dtype_, device_);
  v_ = Tensor({numel_}, dtype_, device_);
  norm_ = Tensor({1}, DType::f64, device_);
  const UpdateState fresh;
  state_ = Tensor({int64_t{sizeof fresh}}, DType::u8, device_);
  copy(view_of(reinterpret_cast<const uint8_t*>(&fresh), state_.shape()), state_.view());
}

TensorView ParameterBlock::flat_values() const {
  return {values_->data(), {numel_}, dtype_, device_};
}
TensorView ParameterBlock::flat_gradients() const {
  return {gradients_->data(), {numel_}, dtype_, device_};
}

void ParameterBlock::zero_gradients(Context& ctx) { set_zero(ctx, flat_gradients()); }

void ParameterBlock::set_loss_scale(const LossScale& scale) {
  scale_rule_ = scale.rule;
  copy(view_of(&scale.initial, Shape{1}), state_part(offsetof(UpdateState, scale), DType::f64));
}

ConstTensorView ParameterBlock::loss_scale() const {
  return {static_cast<const std::byte*>(state().data()) + offsetof(UpdateState, scale),
          {1},
          DType::f64,
          device_};
}

void ParameterBlock::resume(Context& ctx) {
  set_zero(ctx, state_part(offsetof(UpdateState, stopped), DType::i64));
}

TensorView ParameterBlock::state_part(size_t offset, DType dtype) {
  return {static_cast<std::byte*>(state_.view().data()) + offset, {1}, dtype, device_};
}

void ParameterBlock::update(Context& ctx, ConstTensorView losses, AdamWOptions options) {
  scgraft::gradient_norm(ctx, flat_gradients(), norm_.view());
  options.scale_rule = scale_rule_;
  adamw(ctx, flat_values(), flat_gradients(), m_.view(), v_.view(), std::as_const(norm_).view(),
        losses, options, segments_, state_.view());
}

std::vector<Tensor> ParameterBlock::snapshot() const {
  std::vector<Tensor> copy;
  for (const Parameter* p : parameters_) copy.push_back(p->value.clone());
  return copy;
}

void ParameterBlock::restore(const std::vector<Tensor>& values) {
  require(values.size() == parameters_.size(), "a snapshot of ", values.size(),
          " parameters for a block of ", parameters_.size());
  for (size_t i = 0; i < values.size(); ++i) copy(values[i].view(), parameters_[i]->value.view());
}

}  // namespace scgraft
