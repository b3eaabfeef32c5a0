// SPDX-License-Identifier: Apache-2.0
#include "adapters/prefix.h"

#include "adapters/layer_range.h"

namespace scgraft {

Prefix::Prefix(const AdapterOptions& options, Backbone& backbone) : options_(options) {
  resolve_layers(options_, backbone);
  require<ConfigError>(options_.tokens >= 1 && options_.tokens <= 1024,
                       "adapter.tokens must be 1 to 1024, got ", options_.tokens);
  require<ConfigError>(options_.sharing == "none" || options_.sharing == "layers",
                       "adapter.sharing must be none or layers, got \"", options_.sharing, "\"");
  const Tensor& like = backbone.parameters().all().front()->value;
  const DType dtype = like.dtype() == DType::f64 ? DType::f64 : DType::f32;
  const auto rows = [&](const std::string& name) {
    return &parameters_.add(name, Tensor({options_.tokens, backbone.dim()}, dtype, like.device()));
  };
  Parameter* const shared = options_.sharing == "layers" ? rows("prefix") : nullptr;
  for (int layer = options_.first_layer; layer <= options_.last_layer; ++layer) {
    Site& site = sites_.emplace_back();
    site.layer = layer;
    site.parameter = shared != nullptr ? shared : rows(backbone.layer_path(layer) + ".prefix");
  }
}

void Prefix::attach(Backbone& backbone) {
  for (const Site& site : sites_)
    require(backbone.prefix_site(site.layer) == nullptr, "layer ", site.layer,
            " has a prefix already");
  for (Site& site : sites_) backbone.prefix_site(site.layer) = &site;
}

void Prefix::detach(Backbone& backbone) {
  for (Site& site : sites_) {
    PrefixSite*& there = backbone.prefix_site(site.layer);
    if (there == &site) there = nullptr;
  }
}

void Prefix::unmerge_from(Backbone&) { require(false, "the adapter has not been merged"); }

std::unique_ptr<Adapter> make_prefix(const AdapterOptions& options, Backbone& backbone, uint64_t) {
  return std::make_unique<Prefix>(options, backbone);
}

}  // namespace scgraft
