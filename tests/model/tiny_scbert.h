// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string>
#include <utility>

#include "model/scbert/network.h"

namespace scgraft {

// Two layers of width 16, two heads of 8 features.
inline ScbertConfig tiny_scbert_config(int64_t positions) {
  ScbertConfig config;
  config.dim = 16;
  config.layers = 2;
  config.heads = 2;
  config.head_dim = 8;
  config.positions = positions;
  config.ffn_factor = 2;
  return config;
}

// Random values, a function of (seed, name); norms are 1 and 0.
inline ParameterSource tiny_scbert_values(uint64_t seed, DType dtype = DType::f32) {
  return [seed, dtype](const std::string& name, const Shape& shape) {
    Parameter p{name, Tensor(shape, dtype), {}};
    if (name.find("norm") != std::string::npos)
      fill(p, name.ends_with(".weight") ? 1.0 : 0.0);
    else
      initialise_uniform(p, name.ends_with("projection_matrix") ? 2.0 : 0.3, seed);
    return std::move(p.value);
  };
}

}  // namespace scgraft
