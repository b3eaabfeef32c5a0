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
    if (kept_.empty() || n > kept_.numel())
      kept_ = Tensor({std::max(kRoom, n)}, DType::f32, ctx.device());
  }
  copy(ctx, losses, kept_.view().rows(waiting_, waiting_ + n));
  waiting_ += n;
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

void ObjectiveSums::reset() { reset(Totals()); }

void ObjectiveSums::reset(Totals to) {
  loss = to.loss;
  weight = to.weight;
  waiting_ = 0;
}

}  // namespace scgraft
