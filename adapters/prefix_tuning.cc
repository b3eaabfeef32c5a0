// SPDX-License-Identifier: Apache-2.0
#include "adapters/prefix_tuning.h"

#include <algorithm>
#include <numbers>

#include "adapters/layer_range.h"

namespace scgraft {
namespace {

constexpr double kBound = 0.02 * std::numbers::sqrt3;  // of a uniform distribution as wide as 0.02

}  // namespace

PrefixTuning::PrefixTuning(const AdapterOptions& options, Backbone& backbone, uint64_t seed)
    : options_(options) {
  resolve_layers(options_, backbone);
  require<ConfigError>(options_.tokens >= 1 && options_.tokens <= kPrefixRows,
                       "adapter.tokens of a prefix_tuning adapter must be 1 to ", kPrefixRows,
                       ", got ", options_.tokens);
  const Tensor& like = backbone.parameters().all().front()->value;
  const DType dtype = like.dtype() == DType::f64 ? DType::f64 : DType::f32;
  const Shape shape{options_.tokens, backbone.key_width()};
  for (int layer = options_.first_layer; layer <= options_.last_layer; ++layer) {
    Site& site = sites_.emplace_back();
    site.layer = layer;
    const std::string path = backbone.layer_path(layer);
    Parameter keys{path + ".prefix_keys", Tensor(shape, dtype), {}};
    initialise_uniform(keys, kBound, seed);
    site.k = &parameters_.add(keys.name, Tensor(shape, dtype, like.device()));
    site.v = &parameters_.add(path + ".prefix_values", Tensor(shape, dtype, like.device()));
    copy(std::as_const(keys.value).view(), site.k->value.view());
  }
}

void PrefixTuning::attach(Backbone& backbone) {
  for (const Site& site : sites_)
    require(backbone.key_value_site(site.layer) == nullptr, "layer ", site.layer,
            " has keys and values of an adapter already");
  for (Site& site : sites_) backbone.key_value_site(site.layer) = &site;
}

void PrefixTuning::detach(Backbone& backbone) {
  for (Site& site : sites_) {
    KeyValueSite*& there = backbone.key_value_site(site.layer);
    if (there == &site) there = nullptr;
  }
}

void PrefixTuning::unmerge_from(Backbone&) { require(false, "the adapter has not been merged"); }

Tensor prompt_embeddings(const std::vector<Parameter*>& parameters) {
  const Tensor& first = parameters.front()->value;
  const int64_t tokens = first.dim(0), dim = first.dim(1);
  Tensor flat({tokens, static_cast<int64_t>(parameters.size()) * dim}, first.dtype());
  HostCopies host;
  visit_real(first.dtype(), [&]<class T>(Type<T>) {
    const auto to = flat.as<T, 2>();
    for (size_t p = 0; p < parameters.size(); ++p) {
      const auto from = host.view(parameters[p]->value).as<T, 2>();
      for (int64_t t = 0; t < tokens; ++t)
        std::copy_n(from.row(t), dim, to.row(t) + static_cast<int64_t>(p) * dim);
    }
  });
  return flat;
}

void set_prompt_embeddings(const Tensor& flat, const std::vector<Parameter*>& parameters) {
  visit_real(flat.dtype(), [&]<class T>(Type<T>) {
    const auto from = flat.as<T, 2>();
    for (size_t p = 0; p < parameters.size(); ++p) {
      Tensor& value = parameters[p]->value;
      Tensor part(value.shape(), flat.dtype());
      const auto to = part.as<T, 2>();
      for (int64_t t = 0; t < part.dim(0); ++t)
        std::copy_n(from.row(t) + static_cast<int64_t>(p) * part.dim(1), part.dim(1), to.row(t));
      copy(std::as_const(part).view(), value.view());
    }
  });
}

std::unique_ptr<Adapter> make_prefix_tuning(const AdapterOptions& options, Backbone& backbone,
                                            uint64_t seed) {
  return std::make_unique<PrefixTuning>(options, backbone, seed);
}

}  // namespace scgraft
