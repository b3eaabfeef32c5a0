// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <deque>

#include "adapters/adapter.h"

namespace scgraft {

// The prefix adapter: trained rows behind the first token of every cell (PrefixSite in
// model/sites.h), of their own in each layer that has them, <layer>.prefix [tokens, dim], or with
// sharing among layers the same in all: prefix [tokens, dim].
//
// They start at zero, and still take part in the attention from the first step on: as prefix-tuning
// and no other kind, a fresh prefix changes what the backbone computes. Source: scPEFT, after Li
// and Liang 2021.
class Prefix : public Adapter {
 public:
  // Throws ConfigError when options do not fit.
  Prefix(const AdapterOptions& options, Backbone& backbone);

  std::string_view kind() const override { return "prefix"; }
  const AdapterOptions& options() const override { return options_; }
  void attach(Backbone& backbone) override;
  void detach(Backbone& backbone) override;
  std::vector<Parameter*> parameters() override { return parameters_.all(); }
  bool merge_into(Backbone&) override { return false; }  // no weight does what rows do
  void unmerge_from(Backbone&) override;

 private:
  struct Site : PrefixSite {
    int layer = 0;
    Parameter* parameter = nullptr;
    ConstTensorView rows() const override { return std::as_const(parameter->value).view(); }
    bool trainable() const override { return parameter->trainable(); }
    TensorView gradient() override { return parameter->grad.view(); }
  };
  AdapterOptions options_;
  ParameterSet parameters_;
  std::deque<Site> sites_;
};

std::unique_ptr<Adapter> make_prefix(const AdapterOptions& options, Backbone& backbone,
                                     uint64_t seed);

}  // namespace scgraft
