// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <memory>

#include "adapters/adapter.h"

namespace scgraft {

// The token adapter: one bottleneck with a skip (adapters/bottleneck.h) at the site "tokens", the
// rows a token contributes before the layers: on scGPT those of the value encoder, on other
// backbones the sum of all embeddings. Named token_adapter.*. Source: scPEFT.
std::unique_ptr<Adapter> make_token_adapter(const AdapterOptions& options, Backbone& backbone,
                                            uint64_t seed);

}  // namespace scgraft
