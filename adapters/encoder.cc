// SPDX-License-Identifier: Apache-2.0
#include "adapters/encoder.h"

#include <algorithm>

#include "adapters/bottleneck_adapter.h"

namespace scgraft {
namespace {

struct Layout {
  const char* name;
  const char* site;
  const char* module;
  bool skip;
  bool norm;
};
constexpr Layout kLayouts[] = {
    {"norm", "mid", "space_adapter", true, false},
    {"parallel", "mid", "space_adapter", true, false},
    {"branch", "attn.branch", "space_adapter", true, false},
    {"normed", "attn.branch", "space_adapter", true, true},
    {"residual", "ffn.residual", "mlp_adapter", false, true},
};

class EncoderAdapter : public BottleneckAdapter {
 public:
  EncoderAdapter(const AdapterOptions& options, Backbone& backbone, uint64_t seed)
      : BottleneckAdapter(options, backbone, seed) {
    const std::string& layout = options_.layout;
    const auto known = std::find_if(std::begin(kLayouts), std::end(kLayouts),
                                    [&](const Layout& l) { return layout == l.name; });
    require<ConfigError>(known != std::end(kLayouts), "adapter.layout must be norm, parallel, ",
                         "branch, normed or residual, got \"", layout, "\"");
    require<ConfigError>(!known->norm || options_.start == "uniform", "adapter.layout ", layout,
                         " has no start that leaves the outputs as they were; it wants ",
                         "adapter.start: uniform, got ", options_.start);
    for (int layer = options_.first_layer; layer <= options_.last_layer; ++layer) {
      const std::string site = cat("layers.", layer, "."), name = backbone.layer_path(layer);
      add(backbone, site + known->site, cat(name, ".", known->module),
          {.skip = known->skip, .norm = known->norm});
      if (layout == "parallel")
        add(backbone, site + "ffn.beside", name + ".mlp_adapter", {.skip = false, .scale = 0.5});
    }
  }
  std::string_view kind() const override { return "encoder"; }
};

}  // namespace

std::unique_ptr<Adapter> make_encoder_adapter(const AdapterOptions& options, Backbone& backbone,
                                              uint64_t seed) {
  return std::make_unique<EncoderAdapter>(options, backbone, seed);
}

}  // namespace scgraft
