// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <deque>

#include "adapters/adapter.h"
#include "adapters/bottleneck.h"

namespace scgraft {

// Bottlenecks at hidden sites of a backbone: what encoder and token adapters have in common.
class BottleneckAdapter : public Adapter {
 public:
  const AdapterOptions& options() const override { return options_; }
  void attach(Backbone& backbone) override;
  void detach(Backbone& backbone) override;
  std::vector<Parameter*> parameters() override { return parameters_.all(); }
  bool merge_into(Backbone&) override { return false; }  // it is not linear
  void unmerge_from(Backbone&) override;

 protected:
  // Throws ConfigError when width or start are not what they may be.
  BottleneckAdapter(const AdapterOptions& options, Backbone& backbone, uint64_t seed);
  struct Form {
    bool skip = true;
    double scale = 1;
    bool norm = false;
  };
  void add(Backbone& backbone, const std::string& site, const std::string& name, Form form);
  AdapterOptions options_;

 private:
  struct Place {
    std::string site;
    Bottleneck bottleneck;
  };
  ParameterSet parameters_;
  std::deque<Place> places_;
  uint64_t seed_;
};

}  // namespace scgraft
