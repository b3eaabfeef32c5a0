// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace scgraft {

// Sizes of a scFoundation network, under the names of its configuration.
struct ScfoundationConfig {
  int64_t positions = 19266;  // seq_len: genes, then T, then S
  int64_t bins = 100;         // bin_num
  double bin_alpha = 1;
  // Values that stand for something else, compared exactly.
  double pad_value = 103;   // pad_token_id
  double mask_value = 102;  // mask_token_id
  int64_t dim = 768;        // encoder.hidden_dim
  int64_t layers = 12;      // encoder.depth
  int64_t heads = 12;       // encoder.heads
  double dropout = 0.1;     // of the encoder; not configurable in the original
  int64_t decoder_dim = 512;
  int64_t decoder_layers = 6;
  int64_t decoder_heads = 8;
  int64_t decoder_head_dim = 64;

  int64_t ffn() const { return 4 * dim; }
  int64_t genes() const { return positions - 2; }

  // Reads a config.json: one object with "encoder" and "decoder" inside. Throws ModelError naming
  // the key for a value of the wrong kind, sizes that do not divide, or something that this version
  // does not run.
  static ScfoundationConfig from_json(const nlohmann::json& config, const std::string& file);
  // The "config" of a branch of models.ckpt as a config.json has it: the keys of
  // model_config.<model> and dataset_config.rnaseq together. Throws ModelError.
  static nlohmann::json flat(const nlohmann::json& config, const std::string& file);
};

}  // namespace scgraft
