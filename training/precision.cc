// SPDX-License-Identifier: Apache-2.0
#include "training/precision.h"

#include "runtime/config.h"
#include "runtime/error.h"
#include "runtime/gpu/driver.h"

namespace scgraft {
namespace {

[[noreturn]] void refuse(const std::string& message, const char* hint) {
  ConfigError error(message, "E-PRECISION");
  error.set_hint(hint);
  throw error;
}

// Whether tensor cores know bf16.
bool has_bf16(Device device) {
  if constexpr (kBuiltWithCuda)
    if (device.is_cuda()) return gpu::compute_capability(device) >= 80;
  return true;
}

}  // namespace

DType product_dtype(std::string_view precision, Device device) {
  if (precision == "fp32") return DType::f32;
  if (precision == "auto" || precision.empty()) {
    if (device.is_cpu()) return DType::f32;
    return has_bf16(device) ? DType::bf16 : DType::f16;
  }
  if (precision == "bf16") {
    if (!has_bf16(device)) refuse(cat(device, " has no instructions for bf16"), "--precision fp16");
    return DType::bf16;
  }
  if (precision == "fp16") {
    if (device.is_cpu()) refuse("fp16 is for CUDA devices", "--precision bf16");
    return DType::f16;
  }
  refuse(cat("the precision must be auto, fp32, bf16 or fp16, got \"", precision, "\""),
         "--precision auto");
}

}  // namespace scgraft
