// SPDX-License-Identifier: Apache-2.0
#include "training/sent_steps.h"

#include <cstring>

namespace scgraft {

SentSteps::SentSteps(Device device, int64_t room) {
  constexpr int64_t kBytes = sizeof(UpdateState);
  for (int64_t i = 0; i < room; ++i) {
    Slot slot;
    slot.state = Tensor(Buffer::staging(kBytes, device), {kBytes}, DType::u8);
    if (device.is_cuda()) slot.arrived.emplace(device);
    slots_.push_back(std::move(slot));
  }
}

void SentSteps::send(Context& ctx, const ParameterBlock& block, const ObjectiveSums& sums) {
  require(under_way_ < static_cast<int64_t>(slots_.size()), "more than ", slots_.size(),
          " steps are under way");
  Slot& slot = slots_[next_];
  copy(ctx, block.state(), slot.state.view());
  sums.send(ctx, slot.sums);
  if (slot.arrived) slot.arrived->record(ctx.stream());
  next_ = (next_ + 1) % slots_.size();
  ++under_way_;
}

SentSteps::Result SentSteps::take() {
  require(under_way_ > 0, "no step is under way");
  const size_t oldest = (next_ + slots_.size() - static_cast<size_t>(under_way_)) % slots_.size();
  const Slot& slot = slots_[oldest];
  if (slot.arrived) slot.arrived->synchronize();
  --under_way_;
  Result result;
  std::memcpy(&result.state, slot.state.view().data(), sizeof result.state);
  result.sums = slot.sums.totals();
  return result;
}

}  // namespace scgraft
