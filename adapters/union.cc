// SPDX-License-Identifier: Apache-2.0
#include "adapters/union.h"

#include <algorithm>

namespace scgraft {

AdapterUnion::AdapterUnion(const AdapterOptions& options,
                           std::vector<std::unique_ptr<Adapter>> parts)
    : options_(options), parts_(std::move(parts)) {
  // What a part has resolved, such as the last layer.
  const bool apart = !options_.parts.empty();
  options_.parts.clear();
  for (const auto& part : parts_) {
    options_.last_layer = std::max(options_.last_layer, part->options().last_layer);
    if (apart) options_.parts.push_back(part->options());
  }
}

void AdapterUnion::attach(Backbone& backbone) {
  for (size_t i = 0; i < parts_.size(); ++i) try {
      parts_[i]->attach(backbone);
    } catch (...) {  // all of it or nothing
      while (i-- > 0) parts_[i]->detach(backbone);
      throw;
    }
}

void AdapterUnion::detach(Backbone& backbone) {
  for (const auto& part : parts_) part->detach(backbone);
}

std::vector<Parameter*> AdapterUnion::parameters() {
  std::vector<Parameter*> all;
  for (const auto& part : parts_)
    for (Parameter* p : part->parameters()) all.push_back(p);
  return all;
}

bool AdapterUnion::merge_into(Backbone& backbone) {
  for (size_t i = 0; i < parts_.size(); ++i)
    if (!parts_[i]->merge_into(backbone)) {
      while (i-- > 0) parts_[i]->unmerge_from(backbone);
      return false;
    }
  return true;
}

void AdapterUnion::unmerge_from(Backbone& backbone) {
  for (const auto& part : parts_) part->unmerge_from(backbone);
}

}  // namespace scgraft
