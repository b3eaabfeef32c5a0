// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "model/backbone.h"
#include "model/linear_sites.h"

namespace scgraft {

// What backbones say in the same words that are a front and a stack of layers.
//
//   Stack  EncoderStack or PerformerStack
template <class Stack>
class LayeredBackbone : public Backbone {
 public:
  int layer_count() const override { return encoder_.size(); }
  ParameterSet& parameters() override { return parameters_; }
  std::vector<std::string> linear_sites() const override { return encoder_.linear_sites(); }
  Linear& linear_site(const std::string& name) override { return encoder_.linear_site(name); }
  std::string module_path(const std::string& site) const override {
    return encoder_.module_path(site);
  }
  std::vector<std::string> hidden_sites() const override {
    std::vector<std::string> names = encoder_.hidden_sites();
    names.insert(names.begin(), "tokens");
    return names;
  }
  HiddenSite*& hidden_site(const std::string& name) override {
    return name == "tokens" ? token_site() : encoder_.hidden_site(name);
  }
  PrefixSite*& prefix_site(int layer) override {
    return encoder_.layers.at(static_cast<size_t>(layer)).prefix;
  }
  KeyValueSite*& key_value_site(int layer) override {
    return encoder_.layers.at(static_cast<size_t>(layer)).keys_values;
  }
  int64_t heads() const override { return encoder_.layers.front().heads; }
  int64_t key_width() const override { return encoder_.layers.front().k.out(); }
  std::string layer_path(int layer) const override { return encoder_.layer_path(layer); }
  void move_to(Device device) override {
    if (!scgraft::move_to(moving(), device)) return;
    for (Linear* linear : linears()) linear->weight_changed();
    for (LayerNorm* norm : norms()) norm->values_changed();
  }
  void parameters_updated() override {
    for (Linear* linear : linears()) linear->parameters_updated();
    for (LayerNorm* norm : norms())
      if (norm->trainable()) norm->values_changed();
    for (HiddenSite* site : encoder_.attached()) site->parameters_updated();
    if (token_site() != nullptr) token_site()->parameters_updated();
  }
  void set_precision(DType product) override {
    product_ = product;
    encoder_.set_precision(product);
  }
  void set_recompute(bool recompute) override { encoder_.set_recompute(recompute); }

 protected:
  explicit LayeredBackbone(LinearSites sites) : encoder_(std::move(sites)) {}

  // The place called "tokens".
  virtual HiddenSite*& token_site() = 0;
  // All of the network, in front of the layers and in heads too.
  virtual std::vector<Linear*> linears() { return encoder_.linears(); }
  virtual std::vector<LayerNorm*> norms() { return encoder_.norms(); }
  // What move_to() moves.
  virtual std::vector<Parameter*> moving() { return parameters_.all(); }

  ParameterSet parameters_;
  Stack encoder_;
  DType product_ = DType::f32;
};

}  // namespace scgraft
