// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include "app/doctor/checks.h"
#include "runtime/config.h"
#include "runtime/error.h"
#include "runtime/gpu/libraries.h"
#include "runtime/gpu/memory.h"

namespace scgraft {
namespace {

constexpr double kGB = 1e9;
constexpr int64_t kLittleMemory = 2'000'000'000;

std::string cuda_text(int version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

Check driver() {
  const int has = gpu::driver_version(), built = gpu::runtime_version();
  if (kCudaEmulated) return {"GPU driver", Health::ok, "emulated on the CPU, for tests", ""};
  if (has == 0)
    return {"GPU driver", Health::warn, "none", "an NVIDIA driver, where there is a GPU"};
  const std::string found =
      fmt::format("runs CUDA {}, built with {}", cuda_text(has), cuda_text(built));
  if (has / 1000 < built / 1000)
    return {"GPU driver", Health::fail, found,
            fmt::format("a driver for CUDA {} or later", built / 1000)};
  return {"GPU driver", Health::ok, found, ""};
}

// Not by way of Device, which refuses those without kernels.
Check device_number(int index) {
  const std::string what = cat("GPU ", index);
  try {
    const gpu::DeviceFacts facts = gpu::facts(index);
    const std::string name = fmt::format("{}, sm_{}", facts.name, facts.capability);
    if (!facts.has_kernels)
      return {what, Health::warn, name,
              cat("a program with kernels for it; this one has some for ", gpu::architectures())};
    const gpu::MemoryInfo memory = gpu::memory_info(Device::cuda(index));
    const std::string found =
        fmt::format("{}, {:.1f} of {:.1f} GB free", name, static_cast<double>(memory.free) / kGB,
                    static_cast<double>(memory.total) / kGB);
    if (memory.free < kLittleMemory)
      return {what, Health::warn, found, "end other programs that use this GPU"};
    return {what, Health::ok, found, ""};
  } catch (const Error& error) {
    return {what, Health::warn, error.what(), "restart the driver, or use another GPU"};
  }
}

// The device of --device.
Check wanted_device(const std::string& device) {
  try {
    return {"device", Health::ok, Device::parse(device).name(), ""};
  } catch (const DeviceError& error) {
    return {"device", Health::fail, error.what(), error.hint()};
  }
}

}  // namespace

Check check_library(const gpu::LibraryFacts& facts) {
  if (facts.problem.empty())
    return {facts.name, Health::ok, fmt::format("{}, {}", facts.version, facts.file), ""};
  if (facts.named)
    return {facts.name, Health::warn, facts.problem, "another path, or none: own kernels are used"};
  return {facts.name, Health::ok, "not found (optional: own kernels are used)", ""};
}

std::vector<Check> check_gpus(const std::string& device) {
  const bool wanted = device != "auto" && device != "cpu";
  if constexpr (kBuiltWithCuda) {
    std::vector<Check> checks = {driver()};
    for (int index = 0; index < gpu::device_count(); ++index)
      checks.push_back(device_number(index));
    if (gpu::device_count() == 0 && !wanted)
      checks.push_back({"GPU", Health::warn, gpu::why_no_device(), "everything runs on the CPU"});
    for (const gpu::LibraryFacts& facts : gpu::library_facts())
      checks.push_back(check_library(facts));
    if (wanted) checks.push_back(wanted_device(device));
    return checks;
  } else {
    if (wanted) return {wanted_device(device)};
    return {
        {"GPU", Health::warn, "this program was built without CUDA", "everything runs on the CPU"}};
  }
}

}  // namespace scgraft
