// SPDX-License-Identifier: Apache-2.0
#include "adapters/encoder.h"

#include "adapters/bottleneck_adapter.h"

namespace scgraft {
namespace {

class EncoderAdapter : public BottleneckAdapter {
 public:
  EncoderAdapter(const AdapterOptions& options, Backbone& backbone, uint64_t seed)
      : BottleneckAdapter(options, backbone, seed) {
    const std::string& layout = options_.layout;
    require<ConfigError>(layout == "norm" || layout == "parallel" || layout == "branch",
                         "adapter.layout must be norm, parallel or branch, got \"", layout, "\"");
    for (int layer = options_.first_layer; layer <= options_.last_layer; ++layer) {
      const std::string site = cat("layers.", layer, "."), name = backbone.layer_path(layer);
      add(backbone, site + (layout == "branch" ? "attn.branch" : "norm1"), name + ".space_adapter",
          true, 1);
      if (layout == "parallel")
        add(backbone, site + "ffn.beside", name + ".mlp_adapter", false, 0.5);
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
