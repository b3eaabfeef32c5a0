// SPDX-License-Identifier: Apache-2.0
#include "model/scbert/config.h"

#include <nlohmann/json.hpp>

#include "model/model_sizes.h"
#include "runtime/error.h"

namespace scgraft {

ScbertConfig ScbertConfig::from_json(const nlohmann::json& config, const std::string& file) {
  const ModelSizes sizes(config, file);
  ScbertConfig c;
  sizes.read("num_tokens", c.tokens);
  sizes.read("dim", c.dim);
  sizes.read("depth", c.layers);
  sizes.read("heads", c.heads);
  sizes.read("dim_head", c.head_dim);
  sizes.read("max_seq_len", c.positions);
  sizes.read("ff_mult", c.ffn_factor);
  sizes.positive("num_tokens", c.tokens, 1 << 16);
  sizes.positive("dim", c.dim, 1 << 15);
  sizes.positive("depth", c.layers, 1 << 10);
  sizes.positive("heads", c.heads, 1 << 10);
  sizes.positive("dim_head", c.head_dim, 1 << 10);
  sizes.positive("max_seq_len", c.positions, 1 << 24);
  sizes.positive("ff_mult", c.ffn_factor, 64);
  int64_t local = 0;
  sizes.read("local_attn_heads", local);
  if (local != 0) sizes.fail(cat("local_attn_heads is ", local, "; this version runs 0"));
  sizes.read("generalized_attention", c.generalized);
  bool unprojected = false;
  sizes.read("no_projection", unprojected);
  if (unprojected)
    sizes.fail("no_projection is true; this version runs attention with projected features");
  return c;
}

}  // namespace scgraft
