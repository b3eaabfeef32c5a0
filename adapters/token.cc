// SPDX-License-Identifier: Apache-2.0
#include "adapters/token.h"

#include "adapters/bottleneck_adapter.h"

namespace scgraft {
namespace {

class TokenAdapter : public BottleneckAdapter {
 public:
  TokenAdapter(const AdapterOptions& options, Backbone& backbone, uint64_t seed)
      : BottleneckAdapter(options, backbone, seed) {
    add(backbone, "tokens", "token_adapter", {});
  }
  std::string_view kind() const override { return "token"; }
};

}  // namespace

std::unique_ptr<Adapter> make_token_adapter(const AdapterOptions& options, Backbone& backbone,
                                            uint64_t seed) {
  return std::make_unique<TokenAdapter>(options, backbone, seed);
}

}  // namespace scgraft
