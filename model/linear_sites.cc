// SPDX-License-Identifier: Apache-2.0
#include "model/linear_sites.h"

#include "runtime/error.h"

namespace scgraft {
namespace {

constexpr std::array<const char*, 6> kSites = {"attn.q",   "attn.k", "attn.v",
                                               "attn.out", "ffn.in", "ffn.out"};

}  // namespace

std::vector<std::string> LinearSites::names(size_t layers) const {
  std::vector<std::string> names;
  for (size_t i = 0; i < layers; ++i)
    for (const char* site : kSites) names.push_back(cat("layers.", i, ".", site));
  return names;
}

std::pair<size_t, size_t> LinearSites::place(const std::string& site, size_t layers) const {
  for (size_t i = 0; i < layers; ++i)
    for (size_t s = 0; s < kSites.size(); ++s)
      if (site == cat("layers.", i, ".", kSites[s])) return {i, s};
  throw ConfigError(
      cat("no place \"", site, "\" to attach an adapter; this backbone has layers.0 ... layers.",
          layers - 1, " with attn.q, attn.k, attn.v, attn.out, ffn.in, ffn.out"),
      "E-SITE");
}

std::string LinearSites::module_path(const std::string& site, size_t layers) const {
  const auto [layer, which] = place(site, layers);
  return cat(before, layer, ".", projections[which]);
}

std::string LinearSites::layer_path(int layer) const { return cat(before, layer); }

}  // namespace scgraft
