// SPDX-License-Identifier: Apache-2.0
#include "model/device_arrays.h"

#include <algorithm>

namespace scgraft {
namespace {

// At least `nbytes`, and half as much again as before: batches that grow little by little do not
// ask each time.
int64_t room_for(int64_t nbytes, const Tensor& before) {
  return before.empty() ? nbytes : std::max(nbytes, before.nbytes() * 3 / 2);
}

}  // namespace

void DeviceArrays::reserve(Device device, int64_t nbytes) {
  grow_memory(device, nbytes);
  for (Staging& staging : staging_) grow_staging(staging, device, nbytes);
}

void DeviceArrays::grow_memory(Device device, int64_t nbytes) {
  if (!memory_.empty() && memory_.device() == device && memory_.nbytes() >= nbytes) return;
  if (!memory_.empty() && memory_.device() != device) memory_ = Tensor();
  memory_ = Tensor({room_for(nbytes, memory_)}, DType::u8, device);
}

void DeviceArrays::grow_staging(Staging& staging, Device device, int64_t nbytes) {
  if (!staging.bytes.empty() && staging.bytes.nbytes() >= nbytes) return;
  const int64_t room = room_for(nbytes, staging.bytes);
  staging.bytes = Tensor(Buffer::staging(room, device), {room}, DType::u8);
}

std::byte* DeviceArrays::begin_stage(Device device, int64_t nbytes) {
  turn_ = 1 - turn_;
  Staging& staging = staging_[turn_];
  if (staging.read && staging.read->recorded()) staging.read->synchronize();
  grow_staging(staging, device, nbytes);
  return static_cast<std::byte*>(staging.bytes.view().data());
}

void DeviceArrays::copy_all(const Stream& stream, int64_t nbytes) {
  Staging& staging = staging_[turn_];
  if (!staging.read) staging.read.emplace(stream.device());
  copy(stream, std::as_const(staging.bytes).view().rows(0, nbytes), memory_.view().rows(0, nbytes));
  staging.read->record(stream);
}

}  // namespace scgraft
