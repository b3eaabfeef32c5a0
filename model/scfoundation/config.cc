// SPDX-License-Identifier: Apache-2.0
#include "model/scfoundation/config.h"

#include <nlohmann/json.hpp>

#include "model/model_sizes.h"
#include "runtime/error.h"

namespace scgraft {
namespace {

constexpr const char* kModel = "mae_autobin";

// The object under a key; throws by `sizes` when there is none.
const nlohmann::json& part(const nlohmann::json& config, const char* key, const ModelSizes& sizes) {
  if (!config.contains(key) || !config[key].is_object())
    sizes.fail(cat("\"", key, "\" must be an object of sizes"));
  return config[key];
}

}  // namespace

ScfoundationConfig ScfoundationConfig::from_json(const nlohmann::json& config,
                                                 const std::string& file) {
  const ModelSizes sizes(config, file);
  ScfoundationConfig c;
  sizes.expect("model", kModel);
  sizes.expect("bin_type", "auto_bin");
  sizes.read("seq_len", c.positions);
  sizes.read("bin_num", c.bins);
  sizes.read("bin_alpha", c.bin_alpha);
  sizes.read("pad_token_id", c.pad_value);
  sizes.read("mask_token_id", c.mask_value);
  sizes.positive("seq_len", c.positions, 1 << 24);
  sizes.positive("bin_num", c.bins, 1 << 16);
  if (c.positions < 3) sizes.fail(cat("seq_len is ", c.positions, "; two of it are T and S"));
  if (c.pad_value == c.mask_value)
    sizes.fail(cat("pad_token_id and mask_token_id are both ", c.pad_value));

  const nlohmann::json& encoder = part(config, "encoder", sizes);
  const ModelSizes in_encoder(encoder, cat(file, ", encoder"));
  in_encoder.expect("module_type", "transformer");
  in_encoder.read("hidden_dim", c.dim);
  in_encoder.read("depth", c.layers);
  in_encoder.read("heads", c.heads);
  in_encoder.positive("hidden_dim", c.dim, 1 << 15);
  in_encoder.positive("depth", c.layers, 1 << 10);
  in_encoder.positive("heads", c.heads, 1 << 10);
  if (c.dim % c.heads != 0)
    in_encoder.fail(cat("hidden_dim ", c.dim, " is not a multiple of heads ", c.heads));

  const nlohmann::json& decoder = part(config, "decoder", sizes);
  const ModelSizes in_decoder(decoder, cat(file, ", decoder"));
  in_decoder.expect("module_type", "performer");
  in_decoder.read("hidden_dim", c.decoder_dim);
  in_decoder.read("depth", c.decoder_layers);
  in_decoder.read("heads", c.decoder_heads);
  in_decoder.read("dim_head", c.decoder_head_dim);
  in_decoder.positive("hidden_dim", c.decoder_dim, 1 << 15);
  in_decoder.positive("depth", c.decoder_layers, 1 << 10);
  in_decoder.positive("heads", c.decoder_heads, 1 << 10);
  in_decoder.positive("dim_head", c.decoder_head_dim, 1 << 10);
  for (const char* key : {"ff_dropout", "attn_dropout"}) {
    double dropped = 0;
    in_decoder.read(key, dropped);
    if (dropped != 0) in_decoder.fail(cat(key, " is ", dropped, "; this version runs 0"));
  }
  return c;
}

nlohmann::json ScfoundationConfig::flat(const nlohmann::json& config, const std::string& file) {
  const ModelSizes sizes(config, file);
  sizes.expect("model", kModel);
  const nlohmann::json& models = part(config, "model_config", sizes);
  const nlohmann::json& data = part(config, "dataset_config", sizes);
  nlohmann::json flat = part(models, kModel, ModelSizes(models, cat(file, ", model_config")));
  flat.update(part(data, "rnaseq", ModelSizes(data, cat(file, ", dataset_config"))));
  return flat;
}

}  // namespace scgraft
