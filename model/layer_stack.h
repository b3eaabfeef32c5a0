// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "model/linear_sites.h"
#include "model/norm.h"
#include "model/sites.h"
#include "runtime/error.h"

namespace scgraft {

// Equal layers, and the names and places of what may attach to them.
//
//   Layer  has kHiddenSites and hidden_sites(), the names and places of its HiddenSites in one
//          order, linears() in the order of LinearSites, norms(), trainable() and a prefix
template <class Layer>
class LayerStack {
 public:
  explicit LayerStack(LinearSites sites) : sites_(std::move(sites)) {}

  // To be filled by whoever makes the parameters.
  std::vector<Layer> layers;
  int size() const { return static_cast<int>(layers.size()); }

  std::vector<std::string> linear_sites() const { return sites_.names(layers.size()); }
  Linear& linear_site(const std::string& name) {
    const auto [layer, site] = sites_.place(name, layers.size());
    return *layers[layer].linears()[site];
  }
  std::string module_path(const std::string& site) const {
    return sites_.module_path(site, layers.size());
  }
  std::string layer_path(int layer) const { return sites_.layer_path(layer); }

  std::vector<std::string> hidden_sites() const {
    std::vector<std::string> names;
    for (size_t i = 0; i < layers.size(); ++i)
      for (const char* site : Layer::kHiddenSites) names.push_back(cat("layers.", i, ".", site));
    return names;
  }
  HiddenSite*& hidden_site(const std::string& name) {
    for (size_t i = 0; i < layers.size(); ++i)
      for (size_t s = 0; s < Layer::kHiddenSites.size(); ++s)
        if (name == cat("layers.", i, ".", Layer::kHiddenSites[s]))
          return *layers[i].hidden_sites()[s];
    std::string known;
    for (const char* site : Layer::kHiddenSites) known += cat(known.empty() ? "" : ", ", site);
    throw ConfigError(
        cat("no place \"", name, "\" to attach an adapter; this backbone has tokens, ",
            "and layers.0 ... layers.", layers.size() - 1, " with ", known),
        "E-SITE");
  }
  // What is attached at hidden sites.
  std::vector<HiddenSite*> attached() {
    std::vector<HiddenSite*> all;
    for (Layer& layer : layers)
      for (HiddenSite** site : layer.hidden_sites())
        if (*site != nullptr) all.push_back(*site);
    return all;
  }

  std::vector<Linear*> linears() {
    std::vector<Linear*> all;
    for (Layer& layer : layers)
      for (Linear* linear : layer.linears()) all.push_back(linear);
    return all;
  }
  std::vector<LayerNorm*> norms() {
    std::vector<LayerNorm*> all;
    for (Layer& layer : layers)
      for (LayerNorm* norm : layer.norms()) all.push_back(norm);
    return all;
  }
  void set_precision(DType product) {
    for (Linear* linear : linears()) linear->set_precision(product);
  }

  // Of a pass that is saved each layer keeps its input alone: the backward pass computes it once
  // more, from the same random numbers, and gives the same gradients to the bit. Memory of all
  // layers' activations for that of one, and a forward pass more.
  void set_recompute(bool recompute) { recompute_ = recompute; }

  // Lowest layer with anything to train, rows that join its input among it; size() when there is
  // none.
  int frontier() const {
    for (size_t i = 0; i < layers.size(); ++i)
      if (layers[i].trainable() || (layers[i].prefix != nullptr && layers[i].prefix->trainable()))
        return static_cast<int>(i);
    return size();
  }

 protected:
  // Lowest layer with a prefix; size() when none has.
  int first_prefixed() const {
    for (size_t i = 0; i < layers.size(); ++i)
      if (layers[i].prefix != nullptr) return static_cast<int>(i);
    return size();
  }
  // Rows that each prefix has, 0 without one. Throws ShapeError where they differ, or in width.
  int64_t prefix_rows(int64_t dim) const {
    const int prefixed = first_prefixed();
    if (prefixed == size()) return 0;
    const int64_t count = layers[static_cast<size_t>(prefixed)].prefix->rows().dim(0);
    for (const Layer& layer : layers)
      require(layer.prefix == nullptr || layer.prefix->rows().shape() == (Shape{count, dim}),
              "rows that join the tokens must be ", Shape{count, dim}, " in every layer");
    return count;
  }

  bool recompute_ = false;

 private:
  LinearSites sites_;
};

}  // namespace scgraft
