// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "adapters/adapter.h"
#include "runtime/error.h"

namespace scgraft {

// Writes the number of the last layer where options ask for "the last". Throws ConfigError when
// the layers asked for are not those of the backbone.
inline void resolve_layers(AdapterOptions& options, const Backbone& backbone) {
  const int layers = backbone.layer_count();
  if (options.last_layer < 0) options.last_layer = layers - 1;
  require<ConfigError>(options.first_layer >= 0 && options.first_layer <= options.last_layer &&
                           options.last_layer < layers,
                       "the adapter wants layers ", options.first_layer, " to ", options.last_layer,
                       ", the backbone has 0 to ", layers - 1);
}

}  // namespace scgraft
