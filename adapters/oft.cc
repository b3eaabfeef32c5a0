// SPDX-License-Identifier: Apache-2.0
#include "adapters/oft.h"

#include <cmath>

#include "kernels/rotation.h"
#include "runtime/error.h"

namespace scgraft {

ConstTensorView Oft::OftSite::weight(Context& ctx, const Linear& beside) {
  if (stale_) {
    const ConstTensorView rows = beside.weight_rows();
    if (turned_.empty() || turned_.device() != ctx.device()) {
      q_ = Tensor({blocks, size, size}, skew->value.dtype(), ctx.device());
      turned_ = Tensor(rows.shape(), rows.dtype(), ctx.device());
    }
    if (radius > 0) bound_rotation(ctx, radius, skew->value.view());
    cayley(ctx, std::as_const(skew->value).view(), q_.view());
    rotate_columns(ctx, rows, std::as_const(q_).view(), turned_.view());
    stale_ = false;
  }
  return std::as_const(turned_).view();
}

void Oft::OftSite::backward(Context& ctx, const Linear& beside, ConstTensorView x,
                            ConstTensorView dy, const Packing& packing) {
  require(!beside.weight()->trainable(), name(), ": an oft adapter needs a frozen weight");
  const ConstTensorView rows = beside.weight_rows();
  weight(ctx, beside);
  Arena::Scope scratch(ctx.scratch());
  const TensorView dturned = scratch.take(rows.shape(), rows.dtype());
  const TensorView dq = scratch.take(q_.shape(), q_.dtype());
  set_zero(ctx, dturned);
  linear_backward_weight(ctx, x, dy, packing, dturned, {});
  rotate_columns_backward(ctx, rows, dturned, dq);
  cayley_backward(ctx, std::as_const(q_).view(), dq, skew->grad.view());
}

Tensor Oft::OftSite::merged(const Tensor& rows) const {
  Context host(Device::cpu());
  HostCopies copies;
  const ConstTensorView values = copies.view(skew->value);
  Tensor wide(values.shape(), values.dtype());
  copy(values, wide.view());
  wide = wide.converted(DType::f64);
  if (radius > 0) bound_rotation(host, radius, wide.view());
  Tensor q({blocks, size, size}, DType::f64), out(rows.shape(), DType::f64);
  cayley(host, std::as_const(wide).view(), q.view());
  rotate_columns(host, rows.converted(DType::f64).view(), std::as_const(q).view(), out.view());
  return out.converted(rows.dtype());
}

Oft::Oft(const AdapterOptions& options, Backbone& backbone) : ProjectionAdapter(options) {
  const std::vector<Place> wanted = places(backbone);
  require<ConfigError>(options_.block_size >= 0 && options_.block_size <= kRotationSize,
                       "adapter.block_size must be 0 to ", kRotationSize, ", got ",
                       options_.block_size);
  require<ConfigError>(options_.constraint >= 0 && std::isfinite(options_.constraint),
                       "adapter.constraint must not be negative, got ", options_.constraint);
  for (const Place& place : wanted) {
    OftSite& site = add<OftSite>(place);
    if (options_.block_size > 0) {
      site.size = options_.block_size;
      require<ConfigError>(place.in % site.size == 0, "adapter.block_size is ", site.size,
                           ", which does not divide the ", place.in, " inputs of ", place.name);
      site.blocks = place.in / site.size;
    } else {
      site.blocks = options_.blocks;
      require<ConfigError>(site.blocks >= 1 && place.in % site.blocks == 0, "adapter.blocks is ",
                           site.blocks, ", which does not divide the ", place.in, " inputs of ",
                           place.name);
      site.size = place.in / site.blocks;
    }
    require<ConfigError>(site.size >= 2 && site.size <= kRotationSize,
                         "blocks of oft adapters are ", "2 to ", kRotationSize,
                         " wide; adapter.blocks ", site.blocks, " of the ", place.in, " inputs of ",
                         place.name, " are ", site.size);
    site.radius = options_.constraint / std::sqrt(static_cast<double>(site.blocks));
    site.skew = &parameters_.add(place.path + ".oft_R.weight",
                                 place.zeros({site.blocks, site.size * (site.size - 1) / 2}));
  }
}

std::unique_ptr<Adapter> make_oft(const AdapterOptions& options, Backbone& backbone, uint64_t) {
  return std::make_unique<Oft>(options, backbone);
}

}  // namespace scgraft
