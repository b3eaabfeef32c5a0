// SPDX-License-Identifier: Apache-2.0
#include "runtime/tensor.h"

#include <cstring>

#include "runtime/copy_bytes.h"

namespace scgraft {
namespace {

template <class T>
double value_of(T x) {
  if constexpr (std::is_same_v<T, f16> || std::is_same_v<T, bf16>)
    return static_cast<double>(static_cast<float>(x));
  else
    return static_cast<double>(x);
}

}  // namespace

Tensor Tensor::clone() const { return to(device()); }

Tensor Tensor::to(Device device) const {
  if (empty()) return {};
  Tensor out(shape_, dtype_, device);
  copy(view(), out.view());
  return out;
}

void copy(ConstTensorView from, TensorView to) {
  require_copyable(from, to);
  // Work of the blocking streams of a device comes before and after its work without a stream, but
  // not before that of another device.
  if constexpr (kBuiltWithCuda) {
    if (from.device().is_cuda() && to.device().is_cuda() && from.device() != to.device())
      gpu::synchronize(from.device(), nullptr);
  }
  copy_bytes(from, to, nullptr);
  if constexpr (kBuiltWithCuda) {
    if (to.device().is_cuda()) gpu::synchronize(to.device(), nullptr);
    if (from.device().is_cuda()) gpu::synchronize(from.device(), nullptr);
  }
}

Tensor Tensor::converted(DType dtype) const {
  if (dtype == dtype_) return clone();
  if (device().is_cuda()) return to(Device::cpu()).converted(dtype).to(device());
  Tensor out(shape_, dtype, device());
  visit_any(dtype_, [&]<class From>(Type<From>) {
    require<TypeError>(!std::is_integral_v<From>, "cannot convert ", dtype_, " to ", dtype);
    const From* from = as<From>();
    auto fill = [&]<class To>(Type<To>) {
      To* to = out.as<To>();
      for (int64_t i = 0; i < numel(); ++i) to[i] = To(value_of(from[i]));
    };
    if (dtype == DType::bf16) {
      bf16* to = out.as<bf16>();
      for (int64_t i = 0; i < numel(); ++i) to[i] = bf16(static_cast<float>(value_of(from[i])));
    } else {
      visit_real(dtype, fill);
    }
  });
  return out;
}

}  // namespace scgraft
