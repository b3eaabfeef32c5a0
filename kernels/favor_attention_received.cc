// SPDX-License-Identifier: Apache-2.0
#include "kernels/favor_attention_received.h"

#include "kernels/favor_attention_fast.h"
#include "kernels/require_tensor.h"

namespace scgraft {

void favor_attention_received(Context& ctx, ConstTensorView q, ConstTensorView k,
                              const Packing& packing, int64_t heads, ConstTensorView projection,
                              FavorOptions options, const FavorContext& context,
                              TensorView received) {
  const char* op = "favor_attention_received";
  // k once more where the values would be, which play no part.
  const favor::Problem problem =
      favor::check(op, ctx, q, k, k, packing, heads, projection, options, context);
  ctx.require_here(op, received);
  require_tensor(op, "received", received, {heads, q.dim(0)}, sum_type(q.dtype()));
  if constexpr (kBuiltWithCuda) {
    if (ctx.device().is_cuda())
      return cuda::favor_attention_received(ctx, q, k, packing, heads, projection, options, context,
                                            received);
  }
  favor::received(ctx, problem, q, k, projection, context, received);
}

}  // namespace scgraft
