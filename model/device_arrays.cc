// SPDX-License-Identifier: Apache-2.0
#include "model/device_arrays.h"

#include <algorithm>

namespace scgraft {

void DeviceArrays::reserve(Context& ctx, int64_t nbytes) {
  if (static_cast<int64_t>(staging_.size()) < nbytes) staging_.resize(static_cast<size_t>(nbytes));
  const bool here = !memory_.empty() && memory_.device() == ctx.device();
  if (here && memory_.nbytes() >= nbytes) return;
  // Half as much again: batches that grow little by little do not ask each time.
  const int64_t room = here ? std::max(nbytes, memory_.nbytes() * 3 / 2) : nbytes;
  memory_ = Tensor({room}, DType::u8, ctx.device());
}

void DeviceArrays::copy_all(Context& ctx, int64_t nbytes) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(staging_.data());
  copy(ctx, view_of(bytes, Shape{nbytes}), memory_.view().rows(0, nbytes));
}

}  // namespace scgraft
