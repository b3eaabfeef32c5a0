// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "io/vocabulary.h"
#include "model/geneformer/config.h"

namespace scgraft {

// Which Geneformer: V1 has the special tokens <pad> and <mask>, V2 <cls> and <eos> besides.
enum class GeneformerGeneration { v1, v2 };

// The three files that say which gene is which token, and how strongly it is usually expressed.
// Every generation (30M, 95M and 104M cells) has its own; mixed ones would run and give nonsense.
struct GeneDictionaries {
  GeneformerGeneration generation = GeneformerGeneration::v1;
  Vocabulary tokens;            // Ensembl ids and special tokens
  std::vector<double> medians;  // [tokens] non-zero median over the corpus; 0: special token
  int32_t pad_id = 0;
  int32_t cls_id = -1;  // of V2
  int32_t eos_id = -1;
  // Other names of genes to Ensembl ids, those with a token; empty: names are Ensembl ids.
  std::unordered_map<std::string, std::string> mapping;
  std::string token_file, median_file, mapping_file;

  // Reads the dictionaries, as JSON or as the published pickles.
  //   tokens   {"ENSG...": token, "<pad>": 0, ...}, tokens 0..n-1 each once
  //   medians  {"ENSG...": median above 0}
  //   mapping  {"name": "ENSG..."}; empty path: none
  // Throws ModelError: E-DICTIONARY when a file holds something else; E-VOCAB when tokens are not
  // 0..n-1 or a special token is missing; E-DICTIONARY-MIX when the files do not belong together:
  // a token without a median, medians of which more than one in twenty has no token, a mapping
  // that leads to no token. (Those of V2 have not been seen; so a few more medians are let pass.)
  static GeneDictionaries open(const std::string& token_file, const std::string& median_file,
                               const std::string& mapping_file = {});

  // Tokens of the longest cell as published, special tokens included: 2048 of V1, 4096 of V2.
  int64_t published_length() const { return generation == GeneformerGeneration::v1 ? 2048 : 4096; }

  // The token of a gene by the name it has in a file. V1: the name itself, else its mapping. V2:
  // the mapping of the name in upper case, or without a mapping that name. None for special tokens.
  std::optional<int32_t> find(std::string_view name) const;

  // Throws ModelError (E-VOCAB-SIZE) unless the model has a row for every token and none more, and
  // the same padding.
  //   model  its folder, for messages
  void require_model(const GeneformerConfig& config, const std::string& model) const;
};

}  // namespace scgraft
