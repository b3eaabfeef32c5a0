// SPDX-License-Identifier: Apache-2.0
#include "runtime/tensor.h"

#include <cstring>

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

Tensor Tensor::clone() const {
  Tensor copy(shape_, dtype_, device());
  if (nbytes() > 0) std::memcpy(copy.view().data(), view().data(), static_cast<size_t>(nbytes()));
  return copy;
}

Tensor Tensor::converted(DType dtype) const {
  if (dtype == dtype_) return clone();
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
