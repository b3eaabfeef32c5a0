// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace scgraft {

// Sizes of a Geneformer network, a BERT encoder, under the names of its config.json.
struct GeneformerConfig {
  int64_t vocab = 25426;            // vocab_size
  int64_t dim = 256;                // hidden_size
  int64_t heads = 4;                // num_attention_heads
  int64_t layers = 6;               // num_hidden_layers
  int64_t ffn = 512;                // intermediate_size
  int64_t positions = 2048;         // max_position_embeddings: the longest cell
  int64_t types = 2;                // type_vocab_size; every token is of type 0
  double norm_eps = 1e-12;          // layer_norm_eps
  double dropout = 0.02;            // hidden_dropout_prob
  double attention_dropout = 0.02;  // attention_probs_dropout_prob
  int64_t pad_id = 0;               // pad_token_id

  // Reads config.json. Throws ModelError naming the key for a value of the wrong kind, a function
  // this version does not run, or sizes that do not divide.
  static GeneformerConfig from_json(const nlohmann::json& config, const std::string& file);
  // config.json of a model with these sizes.
  nlohmann::json to_json() const;
};

}  // namespace scgraft
