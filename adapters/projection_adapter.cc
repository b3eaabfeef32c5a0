// SPDX-License-Identifier: Apache-2.0
#include "adapters/projection_adapter.h"

#include <algorithm>

#include "adapters/layer_range.h"

namespace scgraft {
namespace {

struct Target {
  const char* name;  // what a user writes
  const char* site;  // suffix of the backbone's site name
};
constexpr Target kTargets[] = {{"q", "attn.q"},     {"k", "attn.k"},      {"v", "attn.v"},
                               {"out", "attn.out"}, {"ffn_in", "ffn.in"}, {"ffn_out", "ffn.out"}};

// The rows of a projection's weight, in host memory. A weight in a mapped file, which is read-only,
// gets memory of its own.
Tensor take_rows(Linear& linear) {
  Parameter& weight = *linear.weight();
  if (weight.value.is_shared()) weight.value = weight.value.clone();
  const ConstTensorView rows = linear.weight_rows();
  Tensor out(rows.shape(), rows.dtype());
  copy(rows, out.view());
  return out;
}

// Puts rows of host memory into the weight.
void put_rows(Linear& linear, const Tensor& rows) {
  copy(rows.view(), linear.mutable_weight_rows());
  linear.weight_changed();
}

}  // namespace

Tensor ProjectionAdapter::Place::zeros(const Shape& shape) const {
  return Tensor(shape, weight_->dtype() == DType::f64 ? DType::f64 : DType::f32, weight_->device());
}

std::vector<ProjectionAdapter::Place> ProjectionAdapter::places(Backbone& backbone) {
  resolve_layers(options_, backbone);
  require<ConfigError>(!options_.targets.empty(), "adapter.target_modules is empty; choose from ",
                       "q, k, v, out, ffn_in, ffn_out");
  std::vector<Place> out;
  for (int layer = options_.first_layer; layer <= options_.last_layer; ++layer)
    for (const std::string& wanted : options_.targets) {
      const auto* target = std::find_if(std::begin(kTargets), std::end(kTargets),
                                        [&](const Target& t) { return wanted == t.name; });
      require<ConfigError>(target != std::end(kTargets), "adapter.target_modules: \"", wanted,
                           "\" is not one of q, k, v, out, ffn_in, ffn_out");
      Place& place = out.emplace_back();
      place.layer = layer;
      place.target = static_cast<uint32_t>(target - std::begin(kTargets));
      place.name = cat("layers.", layer, ".", target->site);
      place.path = cat("base_model.model.", backbone.module_path(place.name));
      Linear& linear = backbone.linear_site(place.name);
      place.in = linear.in();
      place.out = linear.out();
      place.weight_ = &linear.weight()->value;
    }
  return out;
}

void ProjectionAdapter::attach(Backbone& backbone) {
  for (const auto& site : sites_) {
    Linear& linear = backbone.linear_site(site->name());
    require(linear.site() == nullptr, "something is attached to ", site->name(), " already");
    linear.attach(site.get());
  }
}

void ProjectionAdapter::detach(Backbone& backbone) {
  for (const auto& site : sites_) {
    Linear& linear = backbone.linear_site(site->name());
    if (linear.site() == site.get()) linear.attach(nullptr);
  }
}

bool ProjectionAdapter::merge_into(Backbone& backbone) {
  for (const auto& site : sites_) {
    Linear& linear = backbone.linear_site(site->name());
    site->original_ = take_rows(linear);
    put_rows(linear, site->merged(site->original_));
  }
  detach(backbone);
  return true;
}

void ProjectionAdapter::unmerge_from(Backbone& backbone) {
  for (const auto& site : sites_) {
    require(!site->original_.empty(), "the adapter has not been merged");
    put_rows(backbone.linear_site(site->name()), site->original_);
    site->original_ = Tensor();
  }
  attach(backbone);
}

}  // namespace scgraft
