// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "adapters/adapter.h"

namespace scgraft {

// Sites beside linear projections: what lora, hra and oft adapters have in common.
class ProjectionAdapter : public Adapter {
 public:
  const AdapterOptions& options() const override { return options_; }
  void attach(Backbone& backbone) override;
  void detach(Backbone& backbone) override;
  std::vector<Parameter*> parameters() override { return parameters_.all(); }
  bool merge_into(Backbone& backbone) override;
  void unmerge_from(Backbone& backbone) override;

 protected:
  // A projection that gets an adapter.
  struct Place {
    int layer = 0;
    uint32_t target = 0;  // of q, k, v, out, ffn_in, ffn_out
    std::string name;     // of Backbone::linear_sites()
    std::string path;     // base_model.model.<module path>, as PEFT names parameters
    int64_t in = 0, out = 0;
    Tensor zeros(const Shape& shape) const;  // on the device of the weight, f64 as it or else f32

   private:
    friend ProjectionAdapter;
    const Tensor* weight_ = nullptr;
  };
  // What a kind has at a place.
  class Site : public LinearSite {
   public:
    // rows [out, in] of the frozen weight with the adapter in them, in host memory and of the type
    // of rows, rounded once from f64.
    virtual Tensor merged(const Tensor& rows) const = 0;
    const std::string& name() const { return name_; }

   private:
    friend ProjectionAdapter;
    std::string name_;  // of the backbone's site
    Tensor original_;   // weight rows before a merge
  };

  explicit ProjectionAdapter(const AdapterOptions& options) : options_(options) {}
  // The projections that options ask for, layer by layer, in the order of the targets. Writes the
  // last layer into the options. Throws ConfigError for layers that the backbone has not, for an
  // unknown target and for none.
  std::vector<Place> places(Backbone& backbone);
  template <class S>
  S& add(const Place& place) {
    auto site = std::make_unique<S>();
    S& out = *site;
    site->name_ = place.name;
    sites_.push_back(std::move(site));
    return out;
  }

  AdapterOptions options_;
  ParameterSet parameters_;

 private:
  std::vector<std::unique_ptr<Site>> sites_;
};

}  // namespace scgraft
