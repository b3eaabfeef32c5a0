// SPDX-License-Identifier: Apache-2.0
#include "training/objective.h"

#include <algorithm>

namespace scgraft {
namespace {

constexpr int64_t kRoom = 4096;  // losses

}  // namespace

void ObjectiveSums::add(Context& ctx, ConstTensorView losses, ConstTensorView more) {
  const int64_t n = losses.numel();
  if (ctx.device().is_cpu()) {
    for (int64_t i = 0; i < n; ++i) {
      double both = static_cast<double>(losses.as<float>()[i]);
      if (!more.empty()) both += static_cast<double>(more.as<float>()[i]);
      loss += both;
    }
    return;
  }
  keep(ctx, losses);
  if (!more.empty()) keep(ctx, more);
}

void ObjectiveSums::keep(Context& ctx, ConstTensorView losses) {
  const int64_t n = losses.numel();
  if (kept_.empty() || waiting_ + n > kept_.numel()) {
    settle(ctx);
    reserve(ctx, n);
  }
  copy(ctx, losses, kept_.view().rows(waiting_, waiting_ + n));
  waiting_ += n;
}

void ObjectiveSums::reserve(Context& ctx, int64_t losses) {
  if (ctx.device().is_cpu() || (!kept_.empty() && losses <= kept_.numel())) return;
  settle(ctx);
  kept_ = Tensor({std::max(kRoom, losses)}, DType::f32, ctx.device());
}

void ObjectiveSums::settle(Context& ctx) {
  if (waiting_ == 0) return;
  std::vector<float> host(static_cast<size_t>(waiting_));
  copy(ctx, std::as_const(kept_).view().rows(0, waiting_), view_of(host.data(), Shape{waiting_}));
  ctx.synchronize();
  for (const float one : host) loss += static_cast<double>(one);
  waiting_ = 0;
}

ObjectiveSums::Totals ObjectiveSums::totals(Context& ctx) {
  settle(ctx);
  return {loss, weight};
}

ConstTensorView ObjectiveSums::unsettled() const {
  return kept_.empty() ? view_of(&loss, Shape{1}) : kept_.view().rows(0, waiting_);
}

void ObjectiveSums::send(Context& ctx, Sent& to) const {
  to.before_ = {loss, weight};
  to.count_ = waiting_;
  if (waiting_ == 0) return;
  if (to.losses_.empty() || to.losses_.numel() < kept_.numel())
    to.losses_ = Tensor(Buffer::staging(kept_.nbytes(), ctx.device()), kept_.shape(), DType::f32);
  copy(ctx, kept_.view().rows(0, waiting_), to.losses_.view().rows(0, waiting_));
}

ObjectiveSums::Totals ObjectiveSums::Sent::totals() const {
  Totals sum = before_;
  for (int64_t i = 0; i < count_; ++i) sum.loss += static_cast<double>(losses_.as<float>()[i]);
  return sum;
}

void ObjectiveSums::reset() { reset(Totals()); }

void ObjectiveSums::reset(Totals to) {
  loss = to.loss;
  weight = to.weight;
  waiting_ = 0;
}

}  // namespace scgraft
