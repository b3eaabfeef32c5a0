// SPDX-License-Identifier: Apache-2.0
#include "adapters/projections.h"

#include <algorithm>

#include "adapters/layer_range.h"

namespace scgraft {
namespace {

struct Target {
  const char* name;  // what a user writes
  const char* site;  // suffix of the backbone's site name
};
constexpr Target kTargets[] = {{"q", "attn.q"},     {"k", "attn.k"},      {"v", "attn.v"},
                               {"out", "attn.out"}, {"ffn_in", "ffn.in"}, {"ffn_out", "ffn.out"}};

}  // namespace

std::vector<Projection> projections(AdapterOptions& options, const Backbone& backbone) {
  resolve_layers(options, backbone);
  require<ConfigError>(!options.targets.empty(), "adapter.target_modules is empty; choose from ",
                       "q, k, v, out, ffn_in, ffn_out");
  std::vector<Projection> out;
  for (int layer = options.first_layer; layer <= options.last_layer; ++layer)
    for (const std::string& wanted : options.targets) {
      const auto* target = std::find_if(std::begin(kTargets), std::end(kTargets),
                                        [&](const Target& t) { return wanted == t.name; });
      require<ConfigError>(target != std::end(kTargets), "adapter.target_modules: \"", wanted,
                           "\" is not one of q, k, v, out, ffn_in, ffn_out");
      out.push_back({layer, static_cast<uint32_t>(target - std::begin(kTargets)),
                     cat("layers.", layer, ".", target->site)});
    }
  return out;
}

Tensor take_rows(Linear& linear) {
  Parameter& weight = *linear.weight();
  if (weight.value.is_shared()) weight.value = weight.value.clone();
  const ConstTensorView rows = linear.weight_rows();
  Tensor out(rows.shape(), rows.dtype());
  copy(rows, out.view());
  return out;
}

void put_rows(Linear& linear, const Tensor& rows) {
  copy(rows.view(), linear.mutable_weight_rows());
  linear.weight_changed();
}

}  // namespace scgraft
