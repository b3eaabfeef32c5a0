// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace scgraft {

// Sizes of an scBERT network, under the names of its config.json.
struct ScbertConfig {
  int64_t tokens = 7;  // num_tokens: bins, and the mask
  int64_t dim = 200;
  int64_t layers = 6;  // depth
  int64_t heads = 10;
  int64_t head_dim = 64;      // dim_head
  int64_t positions = 16907;  // max_seq_len: genes, and one position that is none
  int64_t ffn_factor = 4;     // ff_mult
  bool generalized = false;   // generalized_attention: features of relu instead of softmax
  bool qkv_bias = false;      // by the tensors of the file: scPEFT's LoRA adds biases

  // Reads config.json. Throws ModelError naming the key for a value of the wrong kind, or for
  // something that this version does not run (local attention, attention without a projection).
  static ScbertConfig from_json(const nlohmann::json& config, const std::string& file);
};

}  // namespace scgraft
