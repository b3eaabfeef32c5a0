// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <array>
#include <string>
#include <utility>
#include <vector>

namespace scgraft {

// Names of the linear sites of equal layers: "layers.<i>.attn.q", attn.k, attn.v, attn.out, ffn.in,
// ffn.out, and what a published checkpoint calls them, "<before><i><after>.<projection>".
struct LinearSites {
  std::string before;
  std::array<const char*, 6> projections;  // what follows the number, in the order above

  // In layer order.
  std::vector<std::string> names(size_t layers) const;
  // Layer and place of a site. Throws ConfigError listing the sites.
  std::pair<size_t, size_t> place(const std::string& site, size_t layers) const;
  std::string module_path(const std::string& site, size_t layers) const;
  std::string layer_path(int layer) const;
};

}  // namespace scgraft
