// SPDX-License-Identifier: Apache-2.0
#include "adapters/bottleneck_adapter.h"

#include <cmath>

#include "adapters/layer_range.h"

namespace scgraft {

BottleneckAdapter::BottleneckAdapter(const AdapterOptions& options, Backbone& backbone,
                                     uint64_t seed)
    : options_(options), seed_(seed) {
  resolve_layers(options_, backbone);
  require<ConfigError>(options_.width > 0 && options_.width <= 4 &&
                           options_.width * static_cast<double>(backbone.dim()) >= 1,
                       "adapter.width must be above 0 and at most 4, and at least one of the ",
                       backbone.dim(), " features, got ", options_.width);
  require<ConfigError>(options_.start == "identity" || options_.start == "uniform",
                       "adapter.start must be identity or uniform, got \"", options_.start, "\"");
}

void BottleneckAdapter::add(Backbone& backbone, const std::string& site, const std::string& name,
                            Form form) {
  const int64_t d = backbone.dim();
  const auto width = static_cast<int64_t>(std::floor(static_cast<double>(d) * options_.width));
  places_.push_back(
      {site,
       Bottleneck(
           parameters_, name,
           {.dim = d, .width = width, .skip = form.skip, .scale = form.scale, .norm = form.norm},
           options_.start == "identity" ? Bottleneck::Start::identity : Bottleneck::Start::uniform,
           backbone.parameters().all().front()->value, seed_)});
}

void BottleneckAdapter::attach(Backbone& backbone) {
  for (const Place& place : places_)
    require(backbone.hidden_site(place.site) == nullptr, "something is attached to ", place.site,
            " already");
  for (Place& place : places_) {
    backbone.hidden_site(place.site) = &place.bottleneck;
    place.bottleneck.parameters_updated();  // they may have been filled since
  }
}

void BottleneckAdapter::detach(Backbone& backbone) {
  for (Place& place : places_) {
    HiddenSite*& site = backbone.hidden_site(place.site);
    if (site == &place.bottleneck) site = nullptr;
  }
}

void BottleneckAdapter::unmerge_from(Backbone&) {
  require(false, "the adapter has not been merged");
}

}  // namespace scgraft
