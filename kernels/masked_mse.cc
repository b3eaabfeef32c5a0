// SPDX-License-Identifier: Apache-2.0
#include "kernels/masked_mse.h"

#include "kernels/ordered_sum.h"
#include "kernels/require_tensor.h"
#include "runtime/parallel.h"

namespace scgraft {

void masked_mse(Context& ctx, ConstTensorView x, ConstTensorView target, ConstTensorView mask,
                const Packing& packing, double scale, TensorView loss, TensorView dx,
                ConstTensorView factor) {
  const char* op = "masked_mse";
  ctx.require_here(op, x, target, mask, loss, dx, factor);
  require(x.rank() == 1, op, ": x must be [tokens], got ", x.shape());
  require_packed(op, "x", packing, x.dim(0));
  require_tensor(op, "target", target, x.shape(), sum_type(x.dtype()));
  require_tensor(op, "mask", mask, x.shape(), DType::u8);
  require_tensor(op, "loss", loss, {packing.cells()}, sum_type(x.dtype()));
  require_optional(op, "dx", dx, x.shape(), x.dtype());
  require_optional(op, "factor", factor, {1}, DType::f64);
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda())
      return cuda::masked_mse(ctx, x, target, mask, packing, scale, loss, dx, factor);
  }
  if (!factor.empty()) scale *= *factor.as<double>();
  visit_real(x.dtype(), [&]<class T>(Type<T>) {
    const T* prediction = x.as<T>();
    const T* wanted = target.as<T>();
    const uint8_t* counts = mask.as<uint8_t>();
    T* out = loss.as<T>();
    T* gradient = data_or_null<T>(dx);
    const T slope = static_cast<T>(2 * scale);
    parallel_for(ctx, packing.cells(), [&](int64_t b) {
      const int64_t begin = packing.begin(b);
      const int64_t end = packing.end(b);
      // A token that does not count is selected away, not multiplied away: it may hold a NaN.
      out[b] = ordered_sum<T>(end - begin, [&, begin](int64_t i) {
        const T error = prediction[begin + i] - wanted[begin + i];
        return counts[begin + i] != 0 ? error * error : T(0);
      });
      if (gradient == nullptr) return;
      for (int64_t t = begin; t < end; ++t)
        gradient[t] = counts[t] != 0 ? slope * (prediction[t] - wanted[t]) : T(0);
    });
  });
}

}  // namespace scgraft
