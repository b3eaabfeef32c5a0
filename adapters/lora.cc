// SPDX-License-Identifier: Apache-2.0
#include "adapters/lora.h"

#include <cmath>

#include "runtime/error.h"

namespace scgraft {

LowRank Lora::LoraSite::term(bool training) const {
  return {.a = std::as_const(a->value).view(),
          .b = std::as_const(b->value).view(),
          .scale = scale,
          .dropout = training ? dropout : Dropout{}};
}

std::span<const LowRank> Lora::LoraSite::terms(Context&, const Linear&, bool training) {
  term_ = term(training);
  return {&term_, 1};
}

void Lora::LoraSite::backward(Context& ctx, const Linear&, ConstTensorView x, ConstTensorView dy,
                              const Packing& packing) {
  // Gradients exist in training only, where the dropout of the forward pass was active.
  low_rank_backward(ctx, x, dy, term(true), packing, a->trainable() ? a->grad.view() : TensorView(),
                    b->trainable() ? b->grad.view() : TensorView());
}

Tensor Lora::LoraSite::merged(const Tensor& rows) const {
  Tensor out = rows.clone();
  HostCopies host;
  const ConstTensorView host_a = host.view(a->value), host_b = host.view(b->value);
  visit_real(out.dtype(), [&]<class T>(Type<T>) {
    const auto w = out.as<T, 2>();
    const auto down = host_a.as<T, 2>();
    const auto up = host_b.as<T, 2>();
    for (int64_t i = 0; i < w.dim(0); ++i)
      for (int64_t j = 0; j < w.dim(1); ++j) {
        double sum = 0;
        for (int64_t r = 0; r < down.dim(0); ++r)
          sum += static_cast<double>(up(i, r)) * static_cast<double>(down(r, j));
        w(i, j) = static_cast<T>(static_cast<double>(w(i, j)) + scale * sum);
      }
  });
  return out;
}

Lora::Lora(const AdapterOptions& options, Backbone& backbone, uint64_t seed)
    : ProjectionAdapter(options) {
  const std::vector<Place> wanted = places(backbone);
  require<ConfigError>(options_.rank >= 1 && options_.rank <= 512,
                       "adapter.r must be 1 to 512, got ", options_.rank);
  require<ConfigError>(options_.dropout >= 0 && options_.dropout < 1,
                       "adapter.lora_dropout must be at least 0 and below 1, got ",
                       options_.dropout);
  for (const Place& place : wanted) {
    LoraSite& site = add<LoraSite>(place);
    site.scale = options_.alpha / static_cast<double>(options_.rank);
    site.dropout = {.p = static_cast<float>(options_.dropout),
                    .site = dropout_site(place.layer, DropoutSlot::adapter, place.target)};
    site.a =
        &parameters_.add(place.path + ".lora_A.weight", place.zeros({options_.rank, place.in}));
    site.b =
        &parameters_.add(place.path + ".lora_B.weight", place.zeros({place.out, options_.rank}));
    initialise_uniform(*site.a, 1.0 / std::sqrt(static_cast<double>(place.in)), seed);
  }
}

std::unique_ptr<Adapter> make_lora(const AdapterOptions& options, Backbone& backbone,
                                   uint64_t seed) {
  return std::make_unique<Lora>(options, backbone, seed);
}

}  // namespace scgraft
