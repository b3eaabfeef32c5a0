// SPDX-License-Identifier: Apache-2.0
#include "runtime/device.h"

#include <charconv>

#include "runtime/config.h"
#include "runtime/error.h"
#include "runtime/gpu/memory.h"
#include "runtime/log.h"

namespace scgraft {
namespace {

[[noreturn]] void throw_none(std::string_view asked) {
  std::string why = "this program was built without CUDA";
  if constexpr (kBuiltWithCuda) {
    const int count = cuda_device_count();
    why = count > 0
              ? cat("this machine has ", count, " CUDA device", count > 1 ? "s" : "")
              : cat("this machine has no CUDA device that can be used: ", gpu::why_no_device());
  }
  DeviceError error(cat("device ", asked, " was asked for, but ", why), "E-DEVICE-NONE");
  error.set_hint("--device cpu");
  throw error;
}

[[noreturn]] void throw_no_kernels(Device device, const gpu::DeviceFacts& facts) {
  DeviceError error(cat(device, " is a ", facts.name, " of compute capability ", facts.capability,
                        ", and this program has kernels for ", gpu::architectures()),
                    "E-DEVICE-ARCH");
  error.set_hint("--device cpu, or a program built for this device");
  throw error;
}

}  // namespace

int cuda_device_count() {
  if constexpr (kBuiltWithCuda) return gpu::device_count();
  return 0;
}

Device Device::best() {
  if constexpr (kBuiltWithCuda && !kCudaEmulated) {
    const int count = cuda_device_count();
    Device found;
    int64_t most = 0;
    for (int index = 0; index < count; ++index) {
      if (!gpu::facts(index).has_kernels) continue;
      const Device device = cuda(index);
      const int64_t free = gpu::memory_info(device).free;
      if (free <= most) continue;
      most = free;
      found = device;
    }
    if (found.is_cuda())
      log_info("device auto: ", found);
    else if (count > 0)
      log_warning("W-DEVICE", "no CUDA device here can run kernels for ", gpu::architectures(),
                  ": using the CPU");
    return found;
  }
  return cpu();
}

Device Device::cuda(int index) {
  if (index < 0 || index >= cuda_device_count()) throw_none(cat("cuda:", index));
  Device device;
  device.index_ = index;
  if constexpr (kBuiltWithCuda) {
    if (const gpu::DeviceFacts facts = gpu::facts(index); !facts.has_kernels)
      throw_no_kernels(device, facts);
  }
  return device;
}

Device Device::parse(std::string_view text) {
  if (text == "cpu") return cpu();
  if (text == "auto") return best();
  if (text == "cuda") return cuda(0);
  int index = 0;
  const std::string_view number = text.substr(std::min<size_t>(text.size(), 5));
  const char* end = number.data() + number.size();
  const auto [last, fault] = std::from_chars(number.data(), end, index);
  if (text.starts_with("cuda:") && fault == std::errc() && last == end && index >= 0)
    return cuda(index);
  ConfigError error(cat("--device must be auto, cpu, cuda or cuda:N, got \"", text, "\""));
  error.set_hint("--device cpu");
  throw error;
}

std::string Device::name() const { return is_cpu() ? "cpu" : cat("cuda:", index_); }

std::ostream& operator<<(std::ostream& out, const Device& device) { return out << device.name(); }

}  // namespace scgraft
