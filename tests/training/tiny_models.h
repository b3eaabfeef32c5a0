// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "io/json.h"
#include "io/safetensors.h"
#include "model/geneformer/network.h"
#include "tests/io/files.h"
#include "tests/io/torch_state.h"
#include "tests/model/tiny_scbert.h"
#include "tests/model/tiny_scfoundation.h"

namespace scgraft {

inline void save_parameters(Backbone& network, const std::string& folder) {
  std::vector<NamedTensor> tensors;
  for (const Parameter* p : network.parameters().all())
    tensors.push_back({p->name, p->value.view()});
  write_safetensors(folder + "/model.safetensors", std::move(tensors), {}, Overwrite::replace);
}

// A network of two layers and width 16 with random weights of a pre-trained model.
inline GeneformerConfig tiny_geneformer_config(int64_t vocab, int64_t positions) {
  GeneformerConfig config;
  config.vocab = vocab;
  config.dim = 16;
  config.heads = 2;
  config.layers = 2;
  config.ffn = 16;
  config.positions = positions;
  config.dropout = config.attention_dropout = 0;
  return config;
}

// As geneformer_initialiser(), but wide enough for few steps to move it; a place says less than a
// gene.
inline ParameterSource tiny_geneformer_values(uint64_t seed) {
  return [seed](const std::string& name, const Shape& shape) {
    Parameter p{name, geneformer_initialiser(seed)(name, shape), {}};
    if (shape.rank() == 2)
      initialise_uniform(p, name.find("position") != std::string::npos ? 0.02 : 0.3, seed);
    return std::move(p.value);
  };
}

// Dictionaries of one median for every gene, in JSON.
inline void write_dictionaries(const std::string& folder, std::span<const std::string> genes,
                               bool v2) {
  nlohmann::json tokens, medians;
  int64_t next = 0;
  for (const char* special : {"<pad>", "<mask>", "<cls>", "<eos>"})
    if (next < (v2 ? 4 : 2)) tokens[special] = next++;
  for (const std::string& gene : genes) {
    tokens[gene] = next++;
    medians[gene] = 1.5;
  }
  write_json(folder + "/token_dictionary.json", tokens, Overwrite::replace);
  write_json(folder + "/gene_median_dictionary.json", medians, Overwrite::replace);
}

// A pre-trained Geneformer folder whose tokens are these genes.
inline void write_geneformer(const std::string& folder, std::span<const std::string> genes,
                             bool v2 = false, int64_t positions = 301) {
  make_directory(folder);
  const GeneformerConfig config =
      tiny_geneformer_config(std::ssize(genes) + (v2 ? 4 : 2), positions);
  GeneformerNetwork network(config, {.words = true}, tiny_geneformer_values(1));
  save_parameters(network, folder);
  write_json(folder + "/config.json", config.to_json(), Overwrite::replace);
  write_dictionaries(folder, genes, v2);
}

// A pre-trained scBERT folder of these genes.
inline void write_scbert(const std::string& folder, std::span<const std::string> genes) {
  make_directory(folder);
  const ScbertConfig c = tiny_scbert_config(std::ssize(genes) + 1);
  ScbertNetwork network(c, 12, {.bins = true}, tiny_scbert_values(1));
  save_parameters(network, folder);
  write_json(folder + "/config.json",
             {{"num_tokens", c.tokens},
              {"dim", c.dim},
              {"depth", c.layers},
              {"heads", c.heads},
              {"dim_head", c.head_dim},
              {"max_seq_len", c.positions},
              {"ff_mult", c.ffn_factor}},
             Overwrite::replace);
  std::string text;
  for (const std::string& gene : genes) text += gene + "\n";
  put(folder + "/genes.txt", text);
}

inline ScfoundationConfig tiny_scfoundation_config(int64_t positions) {
  ScfoundationConfig config = tiny_scfoundation_config();
  config.positions = positions;
  config.dim = 16;
  config.dropout = 0;
  return config;
}

// As random_scfoundation(), but genes and values differ by more than a layer adds.
inline ParameterSource tiny_scfoundation_values(uint64_t seed) {
  return [seed](const std::string& name, const Shape& shape) {
    Parameter p{name, random_scfoundation(seed)(name, shape), {}};
    if (name == "pos_emb.weight" || name == "token_emb.emb.weight") initialise_uniform(p, 2, seed);
    return std::move(p.value);
  };
}

inline void write_scfoundation_genes(const std::string& folder,
                                     std::span<const std::string> genes) {
  std::string table = "gene_name\tindex\n";
  for (size_t i = 0; i < genes.size(); ++i) table += cat(genes[i], "\t", i, "\n");
  put(folder + "/OS_scRNA_gene_index.19264.tsv", table);
}

// A pre-trained scFoundation folder of these genes, whose file has the branch "cell" with its
// decoder, and with classes a classifier.
inline void write_scfoundation(const std::string& folder, std::span<const std::string> genes,
                               int64_t classes = 0) {
  make_directory(folder);
  const ScfoundationConfig c = tiny_scfoundation_config(std::ssize(genes) + 2);
  ScfoundationNetwork network(c, kTinyFeatures, tiny_scfoundation_values(1), classes);
  std::vector<NamedTensor> weights;
  for (const Parameter* p : network.parameters().all())
    weights.push_back({"model." + p->name, std::as_const(p->value).view()});
  Storages storages;
  const std::string branch = pickled::dict({{"state_dict", pickled_state(weights, storages)}});
  put(folder + "/models.ckpt",
      torch_file(pickled::whole(pickled::dict({{"cell", branch}})), storages));
  write_json(folder + "/config.json",
             {{"model", "mae_autobin"},
              {"seq_len", c.positions},
              {"bin_num", c.bins},
              {"bin_alpha", c.bin_alpha},
              {"encoder", {{"hidden_dim", c.dim}, {"depth", c.layers}, {"heads", c.heads}}},
              {"decoder",
               {{"hidden_dim", c.decoder_dim},
                {"depth", c.decoder_layers},
                {"heads", c.decoder_heads},
                {"dim_head", c.decoder_head_dim}}}},
             Overwrite::replace);
  write_scfoundation_genes(folder, genes);
}

}  // namespace scgraft
