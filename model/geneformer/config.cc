// SPDX-License-Identifier: Apache-2.0
#include "model/geneformer/config.h"

#include <nlohmann/json.hpp>

#include "model/model_sizes.h"
#include "runtime/error.h"

namespace scgraft {

GeneformerConfig GeneformerConfig::from_json(const nlohmann::json& config,
                                             const std::string& file) {
  const ModelSizes sizes(config, file);
  GeneformerConfig c;
  sizes.read("vocab_size", c.vocab);
  sizes.read("hidden_size", c.dim);
  sizes.read("num_attention_heads", c.heads);
  sizes.read("num_hidden_layers", c.layers);
  sizes.read("intermediate_size", c.ffn);
  sizes.read("max_position_embeddings", c.positions);
  sizes.read("type_vocab_size", c.types);
  sizes.read("layer_norm_eps", c.norm_eps);
  sizes.read("hidden_dropout_prob", c.dropout);
  sizes.read("attention_probs_dropout_prob", c.attention_dropout);
  sizes.read("pad_token_id", c.pad_id);
  sizes.expect("model_type", "bert");
  sizes.expect("hidden_act", "relu");
  sizes.expect("position_embedding_type", "absolute");

  sizes.positive("vocab_size", c.vocab, 1 << 24);
  sizes.positive("hidden_size", c.dim, 1 << 15);
  sizes.positive("num_attention_heads", c.heads, 1 << 10);
  sizes.positive("num_hidden_layers", c.layers, 1 << 10);
  sizes.positive("intermediate_size", c.ffn, 1 << 17);
  sizes.positive("max_position_embeddings", c.positions, 1 << 20);
  sizes.positive("type_vocab_size", c.types, 1 << 10);
  sizes.probability("hidden_dropout_prob", c.dropout);
  sizes.probability("attention_probs_dropout_prob", c.attention_dropout);
  sizes.probability("layer_norm_eps", c.norm_eps);
  if (c.dim % c.heads != 0)
    sizes.fail(cat("hidden_size ", c.dim, " is not a multiple of num_attention_heads ", c.heads));
  if (c.pad_id < 0 || c.pad_id >= c.vocab)
    sizes.fail(cat("pad_token_id is ", c.pad_id, ", outside the vocabulary of ", c.vocab));
  return c;
}

nlohmann::json GeneformerConfig::to_json() const {
  return {{"model_type", "bert"},
          {"vocab_size", vocab},
          {"hidden_size", dim},
          {"num_attention_heads", heads},
          {"num_hidden_layers", layers},
          {"intermediate_size", ffn},
          {"max_position_embeddings", positions},
          {"type_vocab_size", types},
          {"layer_norm_eps", norm_eps},
          {"hidden_act", "relu"},
          {"hidden_dropout_prob", dropout},
          {"attention_probs_dropout_prob", attention_dropout},
          {"position_embedding_type", "absolute"},
          {"pad_token_id", pad_id}};
}

}  // namespace scgraft
