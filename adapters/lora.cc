// SPDX-License-Identifier: Apache-2.0
#include "adapters/lora.h"

#include <cmath>

#include "adapters/projections.h"
#include "runtime/error.h"

namespace scgraft {

LowRank Lora::Site::term(bool training) const {
  return {.a = std::as_const(a->value).view(),
          .b = std::as_const(b->value).view(),
          .scale = scale,
          .dropout = training ? dropout : Dropout{}};
}

std::span<const LowRank> Lora::Site::terms(Context&, const Linear&, bool training) {
  term_ = term(training);
  return {&term_, 1};
}

void Lora::Site::backward(Context& ctx, const Linear&, ConstTensorView x, ConstTensorView dy,
                          const Packing& packing) {
  // Gradients exist in training only, where the dropout of the forward pass was active.
  low_rank_backward(ctx, x, dy, term(true), packing, a->trainable() ? a->grad.view() : TensorView(),
                    b->trainable() ? b->grad.view() : TensorView());
}

Lora::Lora(const AdapterOptions& options, Backbone& backbone, uint64_t seed) : options_(options) {
  const std::vector<Projection> places = projections(options_, backbone);
  require<ConfigError>(options_.rank >= 1 && options_.rank <= 512,
                       "adapter.r must be 1 to 512, got ", options_.rank);
  require<ConfigError>(options_.dropout >= 0 && options_.dropout < 1,
                       "adapter.lora_dropout must be at least 0 and below 1, got ",
                       options_.dropout);
  for (const Projection& place : places) {
    Site& site = sites_.emplace_back();
    site.name = place.site;
    site.scale = options_.alpha / static_cast<double>(options_.rank);
    site.dropout = {.p = static_cast<float>(options_.dropout),
                    .site = dropout_site(place.layer, DropoutSlot::adapter, place.target)};
    Linear& linear = backbone.linear_site(site.name);
    const Tensor& beside = linear.weight()->value;
    const DType dtype = beside.dtype() == DType::f64 ? DType::f64 : DType::f32;
    const Device device = beside.device();
    const std::string path = cat("base_model.model.", backbone.module_path(site.name));
    site.a = &parameters_.add(path + ".lora_A.weight",
                              Tensor({options_.rank, linear.in()}, dtype, device));
    site.b = &parameters_.add(path + ".lora_B.weight",
                              Tensor({linear.out(), options_.rank}, dtype, device));
    initialise_uniform(*site.a, 1.0 / std::sqrt(static_cast<double>(linear.in())), seed);
  }
}

void Lora::attach(Backbone& backbone) {
  for (Site& site : sites_) {
    Linear& linear = backbone.linear_site(site.name);
    require(linear.site() == nullptr, "something is attached to ", site.name, " already");
    linear.attach(&site);
  }
}

void Lora::detach(Backbone& backbone) {
  for (Site& site : sites_) {
    Linear& linear = backbone.linear_site(site.name);
    if (linear.site() == &site) linear.attach(nullptr);
  }
}

bool Lora::merge_into(Backbone& backbone) {
  for (Site& site : sites_) {
    Linear& linear = backbone.linear_site(site.name);
    site.original = take_rows(linear);
    // Done once and in f64, on the host.
    Tensor merged = site.original.clone();
    HostCopies host;
    const ConstTensorView host_a = host.view(site.a->value), host_b = host.view(site.b->value);
    visit_real(merged.dtype(), [&]<class T>(Type<T>) {
      const auto w = merged.as<T, 2>();
      const auto a = host_a.as<T, 2>();
      const auto b = host_b.as<T, 2>();
      for (int64_t i = 0; i < w.dim(0); ++i)
        for (int64_t j = 0; j < w.dim(1); ++j) {
          double sum = 0;
          for (int64_t r = 0; r < a.dim(0); ++r)
            sum += static_cast<double>(b(i, r)) * static_cast<double>(a(r, j));
          w(i, j) = static_cast<T>(static_cast<double>(w(i, j)) + site.scale * sum);
        }
    });
    put_rows(linear, merged);
  }
  detach(backbone);
  return true;
}

void Lora::unmerge_from(Backbone& backbone) {
  for (Site& site : sites_) {
    require(!site.original.empty(), "the adapter has not been merged");
    put_rows(backbone.linear_site(site.name), site.original);
    site.original = Tensor();
  }
  attach(backbone);
}

std::unique_ptr<Adapter> make_lora(const AdapterOptions& options, Backbone& backbone,
                                   uint64_t seed) {
  return std::make_unique<Lora>(options, backbone, seed);
}

}  // namespace scgraft
